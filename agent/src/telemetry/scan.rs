//! One walk over a tree: reads, parses, and keeps for each field the file it came from or why it is absent.

use super::named::Named;
use super::sysroot::{Absent, Sysroot, TABLE_MAX, VALUE_MAX};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Display;

/// Where a field came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// File, as it is called on the board; or in words what it was computed from.
    pub file: String,
    /// Why there is no figure; `None` when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
}

/// By field, as it is called in the report: `gpu.util_permille`.
pub type Sources = Named<Source>;

/// Reads one tree once.
pub struct Scan<'a> {
    root: &'a Sysroot,
    sources: Option<RefCell<Sources>>,
}

impl<'a> Scan<'a> {
    /// A walk over `root`; `remember` keeps sources, which an agent that only samples can do without.
    pub fn new(root: &'a Sysroot, remember: bool) -> Self {
        Self { root, sources: remember.then(RefCell::default) }
    }

    /// The tree.
    pub fn root(&self) -> &Sysroot {
        self.root
    }

    /// Whether sources are kept.
    pub fn remembers(&self) -> bool {
        self.sources.is_some()
    }

    /// What was kept.
    pub fn into_sources(self) -> Sources {
        self.sources.map(RefCell::into_inner).unwrap_or_default()
    }

    /// The value that `parse` finds in the small file at `path`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn value<T>(
        &self,
        field: impl Display,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, Absent>,
    ) -> Result<T, Absent> {
        let value = self.look(path, parse);
        self.note(field, path, value.as_ref().err());
        value
    }

    /// The same from a table such as /proc/meminfo.
    ///
    /// # Errors
    /// Why there is none.
    pub fn table<T>(
        &self,
        field: impl Display,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, Absent>,
    ) -> Result<T, Absent> {
        let value = self.root.read(path, TABLE_MAX).and_then(|text| parse(&text));
        self.note(field, path, value.as_ref().err());
        value
    }

    /// As `value`, for what is no field of the report by itself.
    ///
    /// # Errors
    /// Why there is none.
    pub fn look<T>(&self, path: &str, parse: impl FnOnce(&str) -> Result<T, Absent>) -> Result<T, Absent> {
        self.root.read(path, VALUE_MAX).and_then(|text| parse(&text))
    }

    /// Keeps why a field with many parts has none: `file` is where they would be.
    pub fn note_empty(&self, field: &str, is_empty: bool, file: &str, why: &'static str) {
        if is_empty {
            self.note(field, file, Some(&Absent::Says(why)));
        }
    }

    /// Keeps where `field` came from, or why it did not.
    pub fn note(&self, field: impl Display, file: &str, absent: Option<&Absent>) {
        if let Some(sources) = &self.sources {
            let is_path = ["proc/", "sys/", "etc/", "var/"].iter().any(|top| file.starts_with(top));
            let file = if is_path { format!("/{file}") } else { file.to_owned() };
            let source = Source { file, absent: absent.map(ToString::to_string) };
            sources.borrow_mut().insert(field.to_string(), source);
        }
    }
}
