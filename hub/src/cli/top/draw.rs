//! One frame of `top`.

use super::model::{Model, Row, Sort};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{self, Cell, Paragraph, Table, TableState};

const HEAD: [&str; 9] = ["NODE", "STATE", "LOAD", "CPU", "GPU", "MEMORY", "WARMEST", "POWER", "AGE"];
const WIDTHS: [u16; 9] = [20, 9, 7, 6, 6, 7, 8, 8, 8];

pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let parts = [Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(parts).areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(Line::styled(model.head(), bold)), head);
    match model.rows.get(model.at).filter(|_| model.is_open) {
        Some(row) => details(frame, body, row),
        None => nodes(frame, body, model),
    }
    let sorts: Vec<String> = Sort::ALL
        .iter()
        .map(|(sort, key, word)| format!("{key} {word}{}", if *sort == model.sort { "*" } else { "" }))
        .collect();
    let keys = format!("{}   enter open   esc back   q quit", sorts.join("  "));
    frame.render_widget(Paragraph::new(Line::styled(keys, Style::new().add_modifier(Modifier::DIM))), foot);
}

fn nodes(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = model.rows.iter().map(|row| widgets::Row::new(cells(row).map(Cell::from)));
    let table = Table::new(rows, WIDTHS.map(Constraint::Length))
        .column_spacing(2)
        .header(widgets::Row::new(HEAD).style(bold))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(Some(model.at));
    frame.render_stateful_widget(table, area, &mut state);
}

fn cells(row: &Row) -> [String; 9] {
    let unit =
        |value: Option<f64>, unit: &str| value.map_or("-".into(), |value| format!("{value:.1} {unit}"));
    let share = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.0} %", value * 100.0));
    [
        row.name.clone(),
        row.state.clone(),
        format!("{}/{}", row.load.0, row.load.1),
        share(row.cpu),
        share(row.gpu),
        share(row.memory),
        unit(row.temperature, "C"),
        unit(row.power, "W"),
        unit(row.age_ms.map(|ms| ms as f64 / 1000.0), "s"),
    ]
}

fn details(frame: &mut Frame<'_>, area: Rect, row: &Row) {
    let lines = row.details.iter().map(|(name, value)| Line::from(format!("{name:<28} {value}")));
    let columns =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas::<2>(area);
    let mut lines: Vec<Line<'_>> =
        [Line::from(format!("{:<28} {}", "node", row.name))].into_iter().chain(lines).collect();
    // What does not fit in one column goes on in the other.
    let rest = lines.split_off(lines.len().min(usize::from(area.height)));
    let whole = if rest.is_empty() { area } else { columns[0] };
    frame.render_widget(Paragraph::new(lines), whole);
    if !rest.is_empty() {
        frame.render_widget(Paragraph::new(rest), columns[1]);
    }
}
