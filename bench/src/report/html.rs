//! One page that fetches nothing: style and plots are in it. Every string of a record is escaped, whoever wrote it.

use super::svg;
use super::value;
use crate::record::{Record, Series};

/// Samples from which a distribution is drawn.
const CDF_MIN: usize = 20;
/// Samples from which an order is drawn.
const ORDER_MIN: usize = 3;

/// Draws a plot with this title.
type Draw = fn(&str, &[&Series]) -> String;

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#57606a;--line:#d0d7de;--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;
--c3:#8250df;--c4:#bf3989;--c5:#7d6608}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9198a1;--line:#3d444d;--c0:#58a6ff;--c1:#f0883e;
--c2:#3fb950;--c3:#bc8cff;--c4:#f778ba;--c5:#d8b73c}}
body{background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1,h2,h3{line-height:1.2;overflow-wrap:anywhere}p,li{overflow-wrap:anywhere}.dim{color:var(--dim)}
svg{width:100%;height:auto;font-size:12px}svg text{fill:var(--dim)}
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2}.err{stroke:var(--fg);stroke-width:2}
.goal{stroke:var(--fg);stroke-width:2;stroke-dasharray:3 2}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim)}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}
";

/// The page.
pub(super) fn page(records: &[Record]) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Dunlin, measured</title><style>",
    );
    out += STYLE;
    for n in 0..svg::COLOURS {
        out += &format!(".l{n}{{stroke:var(--c{n})}}.c{n}{{fill:var(--c{n})}}.k{n}{{color:var(--c{n})}}");
    }
    out += "</style></head><body><main><h1>Dunlin, measured</h1>\n";
    for record in records {
        out += &section(record);
    }
    out += "</main></body></html>\n";
    out
}

fn section(record: &Record) -> String {
    let machine = &record.machine;
    let versions: Vec<String> = machine.versions.iter().map(|(name, v)| format!("{name} {v}")).collect();
    let mut out = format!(
        "<section><h2>{}</h2>\n<p class=\"dim\">{} on {} cores of {}, linux {}, disk {}, load {}; {}</p>\n",
        escape(&record.command),
        escape(&record.started),
        machine.cores,
        escape(&machine.cpu),
        escape(&machine.kernel),
        escape(&machine.disk),
        machine.load1,
        escape(&versions.join(", "))
    );
    if !record.ratios.is_empty() {
        out += &ratios(record);
    }
    let mut single = Vec::new();
    let mut done: Vec<(&str, &str, &str)> = Vec::new();
    for series in &record.series {
        let key = (series.name.as_str(), series.profile.as_str(), series.unit.as_str());
        if done.contains(&key) {
            continue;
        }
        done.push(key);
        let same = |s: &&Series| (s.name.as_str(), s.profile.as_str(), s.unit.as_str()) == key;
        let group: Vec<&Series> = record.series.iter().filter(same).collect();
        match plot(&group) {
            Some((title, plot)) => {
                out += &format!(
                    "<h3>{}</h3>\n<figure>{plot}</figure>\n{}",
                    escape(&title),
                    table(&title, &group)
                );
            }
            None => single.extend(group),
        }
    }
    if !single.is_empty() {
        out += "<h3>Figures</h3>\n";
        out += &table("single figures, and series whose samples were left out", &single);
    }
    if !record.notes.is_empty() {
        let notes: Vec<String> = record.notes.iter().map(|n| format!("<li>{}</li>", escape(n))).collect();
        out += &format!("<h3>Notes</h3>\n<ul>{}</ul>\n", notes.join("\n"));
    }
    out += "</section>\n";
    out
}

fn plot(group: &[&Series]) -> Option<(String, String)> {
    let first = group.first()?;
    let least = group.iter().map(|s| s.samples.len()).max()?;
    let (what, draw): (&str, Draw) = match first.unit.as_str() {
        "us" if least >= CDF_MIN => ("share of all that took at most so long", svg::cdf),
        "us" => return None,
        _ if least >= ORDER_MIN => ("in the order of measuring", svg::order),
        _ => return None,
    };
    let title = format!("{}, {}: {what}", first.name, first.profile);
    let plot = draw(&title, group);
    (!plot.is_empty()).then_some((title, plot))
}

fn table(caption: &str, group: &[&Series]) -> String {
    let mut out = format!(
        "<div class=\"wide\"><table><caption>{}</caption><thead><tr><th scope=\"col\">of</th><th scope=\"col\">unit</th>\
         <th scope=\"col\">n</th><th scope=\"col\">p50</th><th scope=\"col\">p90</th><th scope=\"col\">p99</th>\
         <th scope=\"col\">max</th><th scope=\"col\">durable</th><th scope=\"col\">set up</th></tr></thead><tbody>\n",
        escape(caption)
    );
    let alike = group.iter().all(|s| s.name == group[0].name);
    for (n, series) in group.iter().enumerate() {
        let unit = if series.unit == "us" { "ms" } else { &series.unit };
        let name = if alike { series.system.clone() } else { format!("{}, {}", series.name, series.system) };
        let colour = if alike {
            format!("<span class=\"k{}\">&#9632;</span> ", n % svg::COLOURS)
        } else {
            String::new()
        };
        let figures = [series.p50, series.p90, series.p99, series.max].map(|v| value(v, &series.unit));
        out += &format!(
            "<tr><th scope=\"row\">{colour}{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\n\
             <td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&name),
            escape(unit),
            series.n,
            figures[0],
            figures[1],
            figures[2],
            figures[3],
            if series.durable { "yes" } else { "no" },
            escape(&series.settings)
        );
    }
    out + "</tbody></table></div>\n"
}

fn ratios(record: &Record) -> String {
    let title = "Ratios with their 95 % intervals; a dashed line is the goal";
    let mut out = format!("<h3>{title}</h3>\n<figure>{}</figure>\n", svg::bars(title, &record.ratios));
    out += "<div class=\"wide\"><table><caption>ratios, in the order of the bars</caption><thead><tr><th scope=\"col\">of\
            </th><th scope=\"col\">at</th><th scope=\"col\">ratio</th><th scope=\"col\">from</th><th scope=\"col\">to</th>\
            <th scope=\"col\">goal</th><th scope=\"col\">met</th></tr></thead><tbody>\n";
    for (n, ratio) in record.ratios.iter().enumerate() {
        let met = ratio.met.map_or("", |met| if met { "yes" } else { "no" });
        out += &format!(
            "<tr><th scope=\"row\">{}. {}: {} / {}</th><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td>\
             <td>{}</td><td>{met}</td></tr>\n",
            n + 1,
            escape(&ratio.name),
            escape(&ratio.system),
            escape(&ratio.against),
            escape(&ratio.at),
            ratio.value,
            ratio.low,
            ratio.high,
            ratio.goal.map_or(String::new(), |goal| goal.to_string())
        );
    }
    out + "</tbody></table></div>\n"
}

/// A text that is only text in HTML, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Machine, Ratio};
    use std::collections::BTreeMap;

    const EVIL: &str = "\"><script>alert('x')</script>&";

    fn record(word: &str) -> Record {
        let mut record = Record {
            schema: 1,
            command: word.into(),
            started: word.into(),
            machine: Machine {
                kernel: word.into(),
                cpu: word.into(),
                disk: word.into(),
                versions: BTreeMap::from([(word.to_owned(), word.to_owned())]),
                ..Machine::default()
            },
            series: vec![],
            ratios: vec![],
            notes: vec![word.into()],
        };
        let times: Vec<f64> = (1..=40).map(|n| f64::from(n) * 100.0).collect();
        for samples in [times, vec![5.0], vec![]] {
            record.series.push(Series::new([word, word, word, "us"], samples).with(true, word));
        }
        for samples in [vec![3.0, 1.0, 2.0], vec![0.0; 4], vec![-1.0]] {
            record.series.push(Series::new([word, "x", word, word], samples));
        }
        let [name, system, against, at] = [word; 4].map(str::to_owned);
        let (value, low, high, goal, met) = (0.5, 0.4, 0.6, Some(0.25), Some(false));
        record.ratios.push(Ratio { name, system, against, at, value, low, high, goal, met });
        record
    }

    #[test]
    fn hostile_names_are_only_text() {
        let page = page(&[record(EVIL)]);
        assert!(!page.contains("<script") && !page.contains("alert('x')"), "{page}");
        assert!(page.contains("&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;"));
        // Every tag is one of ours, and nothing is fetched.
        assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("url("));
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }

    #[test]
    fn a_small_record_gives_this_page() {
        let mut record = record("word");
        record.series.truncate(1);
        let page = page(&[record]);
        let body = page.split("<main>").nth(1).unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/report/golden.html");
        if std::env::var_os("DUNLIN_GOLDEN").is_some() {
            std::fs::write(golden, body).unwrap();
        }
        let want = std::fs::read_to_string(golden).unwrap();
        assert_eq!(body, want, "DUNLIN_GOLDEN=1 writes it anew; look at the difference");
    }

    #[test]
    fn each_plot_has_a_title_and_a_table() {
        let page = page(&[record("word")]);
        assert_eq!(page.matches("<svg").count(), page.matches("<title>word").count() + 1);
        assert!(page.matches("<table>").count() >= page.matches("<svg").count());
        for want in ["<polyline", "class=\"goal\"", "prefers-color-scheme:dark", "width=device-width"] {
            assert!(page.contains(want), "{want}");
        }
    }
}
