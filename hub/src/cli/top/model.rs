//! What `top` shows, from the API's JSON. Pure.

use super::super::show::text;
use serde_json::Value;
use std::cmp::Ordering;

/// What the nodes are ordered by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Load,
    Cpu,
    Gpu,
    Memory,
    Temperature,
}

impl Sort {
    /// Each with its key.
    pub(super) const ALL: [(Sort, char, &'static str); 6] = [
        (Sort::Name, 'n', "name"),
        (Sort::Load, 'l', "load"),
        (Sort::Cpu, 'c', "cpu"),
        (Sort::Gpu, 'g', "gpu"),
        (Sort::Memory, 'm', "memory"),
        (Sort::Temperature, 't', "temperature"),
    ];

    pub(super) fn of_key(key: char) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, k, _)| *k == key).map(|(sort, _, _)| sort)
    }
}

/// A node. Unknown is `None`; so are figures that are too old.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub name: String,
    pub state: String,
    /// Tasks it holds, and may hold.
    pub load: (usize, u64),
    /// Busy shares, 0 to 1.
    pub cpu: Option<f64>,
    pub gpu: Option<f64>,
    /// Share of memory that is taken.
    pub memory: Option<f64>,
    /// The warmest sensor, in degrees Celsius.
    pub temperature: Option<f64>,
    /// In watts.
    pub power: Option<f64>,
    /// Age of all that, in milliseconds.
    pub age_ms: Option<u64>,
    /// Name and value of everything else.
    pub details: Vec<(String, String)>,
}

impl Row {
    fn of(node: &Value) -> Self {
        let telemetry = &node["telemetry"];
        let fresh = telemetry["fresh"] == true;
        let figures = &telemetry["figures"];
        let mean = |name: &str| figures[name]["mean"].as_f64().filter(|_| fresh);
        let all = figures.as_object().into_iter().flatten();
        let temperatures = all.clone().filter(|(name, _)| name.starts_with("temperature:"));
        let warmest = temperatures.filter_map(|(_, figure)| figure["mean"].as_f64()).max_by(f64::total_cmp);
        let total = telemetry["board"]["memoryTotal"].as_f64().filter(|total| *total > 0.0);
        let held = |name: &str| node[name].as_array().map_or(0, Vec::len);
        let line = |name: &str, value: &Value| (text(&Value::from(name)), text(value));
        let own = ["health", "profile", "tags", "claimed", "running", "lastOutcome", "version", "rttMs"];
        let own = own.iter().map(|name| line(name, &node[*name]));
        let board =
            telemetry["board"].as_object().into_iter().flatten().map(|(name, value)| line(name, value));
        let figures = all.map(|(name, figure)| {
            let [mean, max, unit] = ["mean", "max", "unit"].map(|part| text(&figure[part]));
            (text(&Value::from(name.as_str())), format!("{mean} (at most {max}) {unit}"))
        });
        Self {
            name: text(&node["nodeId"]),
            state: text(&node["state"]),
            load: (held("claimed") + held("running"), node["maxConcurrentTasks"].as_u64().unwrap_or(0)),
            cpu: mean("cpu"),
            gpu: mean("gpu"),
            memory: mean("memoryAvailable").zip(total).map(|(free, total)| 1.0 - free / total),
            temperature: warmest.filter(|_| fresh),
            power: mean("power"),
            age_ms: telemetry["ageMs"].as_u64(),
            details: own.chain(board).chain(figures).collect(),
        }
    }

    fn is_up(&self) -> bool {
        self.state != "offline"
    }
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub rows: Vec<Row>,
    pub sort: Sort,
    /// Which row is marked.
    pub at: usize,
    /// Whether that node is open.
    pub is_open: bool,
    /// Tasks that wait, and that run.
    pub tasks: (u64, u64),
    /// Why nothing newer is shown.
    pub fault: Option<String>,
}

impl Model {
    pub(super) fn update(&mut self, nodes: &Value, by_state: &Value) {
        let marked = self.rows.get(self.at).map(|row| row.name.clone());
        self.rows = nodes.as_array().into_iter().flatten().map(Row::of).collect();
        let count = |state: &str| by_state[state].as_u64().unwrap_or(0);
        self.tasks = (count("queued"), count("claimed") + count("running"));
        self.order(marked);
    }

    pub(super) fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.order(None);
    }

    /// The marked node stays marked.
    fn order(&mut self, marked: Option<String>) {
        let share = |row: &Row| match self.sort {
            Sort::Name => None,
            Sort::Load => Some(row.load.0 as f64),
            Sort::Cpu => row.cpu,
            Sort::Gpu => row.gpu,
            Sort::Memory => row.memory,
            Sort::Temperature => row.temperature,
        };
        // The greatest first, and what is unknown last.
        let by_share = |a: &Row, b: &Row| match (share(a), share(b)) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        self.rows.sort_by(|a, b| by_share(a, b).then_with(|| a.name.cmp(&b.name)));
        let found = marked.and_then(|name| self.rows.iter().position(|row| row.name == name));
        self.at = found.unwrap_or(0);
        self.is_open &= found.is_some();
    }

    pub(super) fn go(&mut self, by: isize) {
        self.at = self.at.saturating_add_signed(by).min(self.rows.len().saturating_sub(1));
    }

    pub(super) fn open(&mut self) {
        self.is_open = self.at < self.rows.len();
    }

    /// Whether there was something to close.
    pub(super) fn close(&mut self) -> bool {
        std::mem::take(&mut self.is_open)
    }

    /// One line about the fleet.
    pub(super) fn head(&self) -> String {
        let up = self.rows.iter().filter(|row| row.is_up()).count();
        let (queued, running) = self.tasks;
        let fault = self.fault.as_ref().map(|why| format!("  ! {why}")).unwrap_or_default();
        format!("{} nodes, {up} up   {queued} queued, {running} running{fault}", self.rows.len())
    }
}
