//! `dunlin top`: the fleet at a glance, on a terminal or once as text.

mod draw;
mod model;

use super::client::{Client, Failure};
use crate::clock;
use model::{Model, Sort};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Between two looks at the hub, in milliseconds.
const EVERY_MS: u64 = 2_000;
/// Width of a frame that no terminal bounds, in columns.
const WIDTH: u16 = 100;

/// Shows the fleet until it is told to stop; `once` prints one frame, as does an output that is no terminal.
pub(super) fn run(client: &Client, once: bool) -> Result<(), Failure> {
    let mut model = Model::default();
    look(client, &mut model)?;
    if once || !std::io::stdout().is_terminal() {
        let height = model.rows.len().saturating_add(4).min(1000) as u16;
        // A reader that has seen enough, such as `head`, is no fault.
        let _closed = std::io::stdout().write_all(frame(&mut model, WIDTH, height).as_bytes());
        return Ok(());
    }
    let failed = |e: std::io::Error| Failure::Usage(format!("the terminal: {e}"));
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let done = watch(client, &mut model, &mut terminal);
    ratatui::restore();
    done.map_err(failed)
}

fn look(client: &Client, model: &mut Model) -> Result<(), Failure> {
    let nodes = client.get("/v1/nodes")?;
    let summary = client.get("/v1/runs/summary")?;
    model.update(&nodes["nodes"], &summary["byState"]);
    Ok(())
}

fn watch(client: &Client, model: &mut Model, terminal: &mut DefaultTerminal) -> std::io::Result<()> {
    let mut look_at = clock::now().mono + EVERY_MS;
    loop {
        terminal.draw(|frame| draw::draw(frame, model))?;
        let wait = look_at.saturating_sub(clock::now().mono);
        // A key that is held down must not hold up the next look.
        if wait == 0 {
            // What was seen last stays, with a word why it is no newer.
            model.fault = look(client, model).err().map(|failure| failure.to_string());
            look_at = clock::now().mono + EVERY_MS;
        } else if event::poll(Duration::from_millis(wait))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && press(model, key)
        {
            return Ok(());
        }
    }
}

/// What a key does. Whether it was the last.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Esc if !model.close() => return true,
        KeyCode::Up | KeyCode::Char('k') => model.go(-1),
        KeyCode::Down | KeyCode::Char('j') => model.go(1),
        KeyCode::Enter => model.open(),
        KeyCode::Char(c) => {
            if let Some(sort) = Sort::of_key(c) {
                model.sort_by(sort);
            }
        }
        _ => {}
    }
    false
}

/// One frame as text.
fn frame(model: &mut Model, width: u16, height: u16) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(frame, model));
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width.max(1)));
    let lines = rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, cpu: Option<f64>, fresh: bool) -> Value {
        json!({
            "nodeId": name, "state": "idle", "health": "healthy", "maxConcurrentTasks": 2,
            "claimed": [], "running": ["t1"],
            "telemetry": {
                "ageMs": 2300, "fresh": fresh,
                "board": {"memoryTotal": 1000, "model": "M\u{1b}[2J"},
                "figures": {
                    "cpu": cpu.map(|mean| json!({"mean": mean, "max": mean, "unit": "ratio"})),
                    "memoryAvailable": {"mean": 250.0, "max": 300.0, "unit": "bytes"},
                    "temperature:a": {"mean": 40.0, "max": 41.0, "unit": "celsius"},
                    "temperature:b": {"mean": 53.3, "max": 60.0, "unit": "celsius"},
                    "power": {"mean": 12.48, "max": 13.0, "unit": "watts"},
                },
            },
        })
    }

    fn model() -> Model {
        let mut model = Model::default();
        let bare = json!({"nodeId": "c", "state": "offline", "health": "offline", "maxConcurrentTasks": 1});
        let nodes =
            json!([node("a", Some(0.12), true), node("b", Some(0.9), true), bare, node("d", None, false)]);
        model.update(&nodes, &json!({"queued": 3, "running": 2}));
        model
    }

    fn order(model: &Model) -> String {
        model.rows.iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn a_frame_is_text_and_unknown_is_a_dash() {
        let text = frame(&mut model(), 100, 9);
        let words = |name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert!(text.contains("4 nodes, 3 up") && text.contains("3 queued, 2 running"), "{text}");
        assert_eq!(words("a "), "a idle 1/2 12 % - 75 % 53.3 C 12.5 W 2.3 s", "{text}");
        assert_eq!(words("c "), "c offline 0/1 - - - - - -", "{text}");
        assert_eq!(words("d "), "d idle 1/2 - - - - - 2.3 s", "old figures are unknown\n{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn keys_sort_and_open_and_quit() {
        let mut model = model();
        let key = |model: &mut Model, code| press(model, KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(order(&model), "abcd");
        assert!(!key(&mut model, KeyCode::Char('c')));
        assert_eq!(order(&model), "bacd", "the busiest first, unknown last");
        key(&mut model, KeyCode::Down);
        key(&mut model, KeyCode::Enter);
        let text = frame(&mut model, 100, 30);
        assert!(text.contains("temperature:b") && text.contains("M\\u{1b}[2J"), "{text}");
        assert!(!key(&mut model, KeyCode::Esc), "closes the node");
        assert!(key(&mut model, KeyCode::Esc));
        assert!(key(&mut model, KeyCode::Char('q')));
        key(&mut model, KeyCode::Char('n'));
        assert_eq!(order(&model), "abcd");
        let mut empty = Model::default();
        key(&mut empty, KeyCode::Down);
        key(&mut empty, KeyCode::Enter);
        assert_eq!(frame(&mut empty, 10, 9).lines().count(), 9, "a narrow terminal shows less");
    }
}
