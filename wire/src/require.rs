//! What a task requires of a board besides tags: `gpuMemoryFreeMib >= 2048`, `not throttled`. The hub decides on it
//! when it grants, the board once more when it starts the job. What is unknown is not met.

use crate::telemetry::{Figure, Inventory, Slot};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest text of one, in bytes.
const TEXT_MAX: usize = 128;
/// Greatest number in one.
const NUMBER_MAX: i64 = 1_000_000_000;

/// Why a text is no requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {rule}")]
pub struct RequireError {
    text: String,
    rule: String,
}

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    GpuMemoryFree,
    MemoryFree,
    DiskFree,
    TemperatureHeadroom,
    PowerMode,
    L4t,
    Throttled,
}

const SUBJECTS: [(Subject, &str); 7] = [
    (Subject::GpuMemoryFree, "gpuMemoryFreeMib"),
    (Subject::MemoryFree, "memoryFreeMib"),
    (Subject::DiskFree, "diskFreeMib"),
    (Subject::TemperatureHeadroom, "temperatureHeadroomC"),
    (Subject::PowerMode, "powerMode"),
    (Subject::L4t, "l4t"),
    (Subject::Throttled, "throttled"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    Ge,
    Le,
    Gt,
    Lt,
    Eq,
    Ne,
}

/// Those of two characters first: `>=` begins with `>`.
const OPS: [(Op, &str); 6] =
    [(Op::Ge, ">="), (Op::Le, "<="), (Op::Eq, "=="), (Op::Ne, "!="), (Op::Gt, ">"), (Op::Lt, "<")];

impl Op {
    fn holds<T: PartialOrd>(self, is: &T, want: &T) -> bool {
        match self {
            Op::Ge => is >= want,
            Op::Le => is <= want,
            Op::Gt => is > want,
            Op::Lt => is < want,
            Op::Eq => is == want,
            Op::Ne => is != want,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    /// A number, in tenths.
    Tenths(i64),
    /// A release: what it leaves out is 0.
    Release([u32; 3]),
    Word(String),
    Flag(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Tenths(n) if n % 10 == 0 => write!(f, "{}", n / 10),
            Value::Tenths(n) => {
                write!(f, "{}{}.{}", if *n < 0 { "-" } else { "" }, n.abs() / 10, n.abs() % 10)
            }
            Value::Release([a, b, c]) => write!(f, "{a}.{b}.{c}"),
            Value::Word(word) => write!(f, "\"{word}\""),
            Value::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Require {
    subject: Subject,
    op: Op,
    value: Value,
}

/// What is known of a board.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What it has.
    pub inventory: &'a Inventory,
    /// A figure for each of its slots.
    pub figures: &'a [Option<Figure>],
}

impl Require {
    /// Whether the board has it; else what it has instead.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check(&self, facts: Option<Facts<'_>>) -> Result<(), String> {
        let subject = self.subject.word();
        let Some(is) = facts.and_then(|facts| facts.value(self.subject)) else {
            return Err(format!("{subject} is unknown"));
        };
        let holds = match (&is, &self.value) {
            (Value::Tenths(is), Value::Tenths(want)) => self.op.holds(is, want),
            (Value::Release(is), Value::Release(want)) => self.op.holds(is, want),
            (is, want) => self.op.holds(is, want),
        };
        if holds {
            return Ok(());
        }
        match self.value {
            Value::Flag(_) => Err(format!("{subject} is {is}")),
            _ => Err(format!("{subject} is {is}, not {} {}", self.op.text(), self.value)),
        }
    }
}

impl Facts<'_> {
    fn known(&self) -> impl Iterator<Item = (&Slot, Option<Figure>)> {
        self.inventory.slots.iter().zip(self.figures.iter().copied())
    }

    fn mean(&self, wanted: &Slot) -> Option<i64> {
        self.known().find(|(slot, _)| *slot == wanted)?.1.map(|figure| figure.mean)
    }

    fn value(&self, subject: Subject) -> Option<Value> {
        let inventory = self.inventory;
        let tenths = |n: i64| Value::Tenths(n.saturating_mul(10));
        match subject {
            // A job runs on one GPU: on that which has most.
            Subject::GpuMemoryFree if inventory.gpu_memory_shared != Some(true) => {
                let own = self.known().filter(|(slot, _)| matches!(slot, Slot::GpuMemoryFree { .. }));
                own.filter_map(|(_, figure)| Some(figure?.mean)).max().map(tenths)
            }
            Subject::GpuMemoryFree | Subject::MemoryFree => self.mean(&Slot::MemoryAvailable).map(tenths),
            // Of the filesystem that has least; one that does not answer may be that.
            Subject::DiskFree => {
                let mut least = None;
                for (_, figure) in self.known().filter(|(slot, _)| matches!(slot, Slot::Filesystem { .. })) {
                    let free = figure?.mean;
                    least = Some(least.map_or(free, |other: i64| other.min(free)));
                }
                least.map(tenths)
            }
            // A part that is switched off has no temperature, and is not too warm.
            Subject::TemperatureHeadroom => {
                let room = |(slot, figure): (&Slot, Option<Figure>)| match slot {
                    Slot::Temperature { trip: Some(trip), .. } => {
                        figure.map(|f| i64::from(*trip).saturating_sub(f.max()))
                    }
                    _ => None,
                };
                self.known().filter_map(room).min().map(Value::Tenths)
            }
            Subject::PowerMode => inventory.power_mode.clone().map(Value::Word),
            Subject::L4t => release(inventory.l4t.as_deref()?).map(Value::Release),
            Subject::Throttled => {
                let throttled = self.known().find(|(slot, _)| **slot == Slot::Throttled)?.1?;
                Some(Value::Flag(throttled.max() > 0))
            }
        }
    }
}

impl Subject {
    fn word(self) -> &'static str {
        SUBJECTS.iter().find(|(subject, _)| *subject == self).map_or("", |(_, word)| word)
    }
}

impl Op {
    fn text(self) -> &'static str {
        OPS.iter().find(|(op, _)| *op == self).map_or("", |(_, text)| text)
    }
}

impl TryFrom<String> for Require {
    type Error = RequireError;

    fn try_from(text: String) -> Result<Self, RequireError> {
        text.parse()
    }
}

impl From<Require> for String {
    fn from(require: Require) -> String {
        require.to_string()
    }
}

impl fmt::Display for Require {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Value::Flag(true) => f.write_str(self.subject.word()),
            Value::Flag(false) => write!(f, "not {}", self.subject.word()),
            _ => write!(f, "{} {} {}", self.subject.word(), self.op.text(), self.value),
        }
    }
}

impl std::str::FromStr for Require {
    type Err = RequireError;

    fn from_str(text: &str) -> Result<Self, RequireError> {
        let shown: String = text.chars().take(TEXT_MAX).collect();
        parse(text).map_err(|rule| RequireError { text: shown, rule })
    }
}

fn parse(text: &str) -> Result<Require, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("must be at most {TEXT_MAX} bytes"));
    }
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let (word, rest, negated) = match word {
        "not" => (rest.trim(), "", true),
        _ => (word, rest.trim_start(), false),
    };
    let found = SUBJECTS.iter().find(|(_, name)| *name == word);
    let (subject, _) = *found.ok_or_else(|| {
        let known = SUBJECTS.map(|(_, word)| word).join(", ");
        format!("`{word}` is not known; there are {known}")
    })?;
    if subject == Subject::Throttled || negated {
        return match (subject, rest) {
            (Subject::Throttled, "") => Ok(Require { subject, op: Op::Eq, value: Value::Flag(!negated) }),
            (Subject::Throttled, _) => Err("is `throttled` or `not throttled`".into()),
            _ => Err(format!("`not` goes with throttled only; compare {word} with a value")),
        };
    }
    let ops = OPS.map(|(_, text)| text).join(" ");
    let found = OPS.iter().find_map(|(op, text)| Some((*op, rest.strip_prefix(text)?)));
    let (op, value) = found.ok_or_else(|| format!("after {word} there must be one of {ops}"))?;
    let value = value.trim();
    let value = match subject {
        Subject::PowerMode if !matches!(op, Op::Eq | Op::Ne) => {
            return Err("powerMode can only be compared with == and !=".into());
        }
        Subject::PowerMode => Value::Word(quoted(value)?),
        Subject::L4t => Value::Release(release(value).ok_or("must be a release, like 36.4 or 36.4.0")?),
        _ => Value::Tenths(tenths(value).ok_or("must be a number with at most one decimal")?),
    };
    Ok(Require { subject, op, value })
}

/// `"MAXN"`. Quotes, so that a name may have blanks.
fn quoted(text: &str) -> Result<String, String> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let inner = inner.filter(|inner| !inner.is_empty() && !inner.contains(['"', '\\']));
    let inner = inner.filter(|inner| !inner.chars().any(char::is_control));
    inner.map(str::to_owned).ok_or_else(|| "must be a name in double quotes, like \"MAXN\"".into())
}

fn tenths(text: &str) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, tenth) = digits.split_once('.').unwrap_or((digits, "0"));
    if whole.is_empty() || tenth.len() != 1 || !(whole.to_owned() + tenth).bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let whole: i64 = whole.parse().ok().filter(|n| *n <= NUMBER_MAX)?;
    let tenths = whole * 10 + tenth.parse::<i64>().ok()?;
    Some(if negative { -tenths } else { tenths })
}

fn release(text: &str) -> Option<[u32; 3]> {
    let mut parts = [0; 3];
    let mut given = text.split('.');
    for (n, part) in parts.iter_mut().enumerate() {
        match given.next() {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                *part = digits.parse().ok()?;
            }
            None if n > 0 => {}
            _ => return None,
        }
    }
    given.next().is_none().then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, inventory: &Inventory, figures: &[Option<Figure>], want: Result<(), &str>) {
        let require: Require = text.parse().unwrap();
        let got = require.check(Some(Facts { inventory, figures }));
        assert_eq!(got.as_ref().map(|_| ()).map_err(|e| e.as_str()), want, "{text}");
        assert_eq!(require.to_string().parse(), Ok(require.clone()), "{text}");
        let bytes = postcard::to_stdvec(&require).unwrap();
        assert_eq!(postcard::from_bytes::<Require>(&bytes).unwrap(), require, "{text}");
    }

    #[test]
    fn each_is_decided_on_what_is_known() {
        let temperature = |name: &str| Slot::Temperature { name: name.into(), trip: Some(1050) };
        let filesystem = |name: &str| Slot::Filesystem { name: name.into(), total_mib: 9000 };
        let slots = vec![
            Slot::MemoryAvailable,
            temperature("cpu"),
            temperature("off"),
            filesystem("/"),
            filesystem("/data"),
            Slot::Throttled,
        ];
        let board = Inventory {
            slots,
            l4t: Some("36.4.0".into()),
            power_mode: Some("MAXN".into()),
            gpu_memory_shared: Some(true),
            ..Inventory::default()
        };
        let figure = |mean| Some(Figure { mean, over: 5 });
        let zero = Some(Figure::default());
        let figures = [figure(2048), figure(949), None, figure(5000), figure(700), zero];
        let all = |text, want| check(text, &board, &figures, want);
        all("gpuMemoryFreeMib >= 2048", Ok(()));
        all("gpuMemoryFreeMib>2048", Err("gpuMemoryFreeMib is 2048, not > 2048"));
        all("memoryFreeMib < 2048.5", Ok(()));
        all("temperatureHeadroomC >= 9.6", Ok(()));
        all("temperatureHeadroomC >= 10", Err("temperatureHeadroomC is 9.6, not >= 10"));
        all("diskFreeMib >= 700", Ok(()));
        all("diskFreeMib >= 701", Err("diskFreeMib is 700, not >= 701"));
        all("powerMode == \"MAXN\"", Ok(()));
        all("powerMode != \"MAXN\"", Err("powerMode is \"MAXN\", not != \"MAXN\""));
        all("l4t >= 36.4", Ok(()));
        all("l4t >= 36.10", Err("l4t is 36.4.0, not >= 36.10.0"));
        all("not throttled", Ok(()));
        all("throttled", Err("throttled is false"));
        let hot = [None, None, None, figure(1), None, figure(0)];
        check("not throttled", &board, &hot, Err("throttled is true"));
        check("diskFreeMib >= 0", &board, &hot, Err("diskFreeMib is unknown"));
        check("memoryFreeMib >= 0", &board, &hot, Err("memoryFreeMib is unknown"));
        check("temperatureHeadroomC >= 0", &board, &hot, Err("temperatureHeadroomC is unknown"));
        let other = Inventory { gpu_memory_shared: None, l4t: None, ..board.clone() };
        check("gpuMemoryFreeMib >= 0", &other, &figures, Err("gpuMemoryFreeMib is unknown"));
        let own = |name: &str| Slot::GpuMemoryFree { name: name.into(), total_mib: 9000 };
        let slots = vec![Slot::MemoryAvailable, own("0"), own("1"), own("2")];
        let discrete = Inventory { gpu_memory_shared: Some(false), slots, ..Inventory::default() };
        let figures = [figure(9999), figure(100), None, figure(2048)];
        check("gpuMemoryFreeMib >= 2048", &discrete, &figures, Ok(()));
        check("gpuMemoryFreeMib > 2048", &discrete, &figures, Err("gpuMemoryFreeMib is 2048, not > 2048"));
        check(
            "gpuMemoryFreeMib >= 0",
            &discrete,
            &[figure(9), None, None, None],
            Err("gpuMemoryFreeMib is unknown"),
        );
        check("l4t >= 0", &other, &figures, Err("l4t is unknown"));
        let require: Require = "not throttled".parse().unwrap();
        assert_eq!(require.check(None), Err("throttled is unknown".into()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("", "`` is not known; there are gpuMemoryFreeMib"),
            ("cpu >= 1", "`cpu` is not known"),
            ("not", "`` is not known"),
            ("not l4t", "`not` goes with throttled only"),
            ("not throttled now", "`throttled now` is not known"),
            ("throttled == 1", "is `throttled` or `not throttled`"),
            ("l4t", "after l4t there must be one of >= <= == != > <"),
            ("l4t = 36", "after l4t there must be one of"),
            ("l4t >= 36.x", "must be a release"),
            ("l4t >= 36.4.0.1", "must be a release"),
            ("powerMode > \"A\"", "only be compared with == and !="),
            ("powerMode == MAXN", "in double quotes"),
            ("diskFreeMib >= 1e3", "must be a number"),
            ("diskFreeMib >= 1.25", "must be a number"),
            ("diskFreeMib >= -", "must be a number"),
            ("diskFreeMib >= 99999999999999999999", "must be a number"),
        ] {
            let error = text.parse::<Require>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!("l4t >= 1 ".repeat(20).parse::<Require>().is_err());
    }
}
