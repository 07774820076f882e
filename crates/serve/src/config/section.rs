//! Reads tables into types, and keeps account of it.
//!
//! A key exists because a `read` asks for it: what nobody asked for is unknown, what was asked for
//! is what [`super::known_keys`] lists and what `--print-config` prints. There is no second list.

use super::error::ConfigError;
use super::kinds::Kind;
use super::tree::{EMPTY, Node, Source, Table, Value, dotted};

/// A key that was read: what it resolved to, and because of whom.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leaf {
    /// The table it is in.
    pub(super) table: Vec<String>,
    pub(super) key: &'static str,
    /// `None` when nobody sets it and it has no default.
    pub(super) value: Option<toml::Value>,
    pub(super) source: Source,
}

/// What reading found out besides the values.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) errors: Vec<ConfigError>,
    pub(super) leaves: Vec<Leaf>,
    /// Every key that was asked for, also in tables that are absent.
    pub(super) asked: Vec<Vec<String>>,
    /// Keys of other tables that an unknown one may have been meant to be.
    pub(super) candidates: Vec<String>,
}

/// A table being read. A wrong value is reported and its default read instead, so that one run
/// finds all errors; whoever starts reading must look at [`Report::errors`] at the end.
pub(super) struct Section<'a> {
    report: &'a mut Report,
    path: Vec<String>,
    table: &'a Table,
    /// Where the table itself is.
    at: Source,
    /// Where a key is looked up that the table itself does not have.
    inherited: &'a Table,
    asked: Vec<String>,
}

impl<'a> Section<'a> {
    /// Reads `table`, whose keys have no prefix, with `read`.
    pub(super) fn root<T>(
        report: &'a mut Report,
        table: &'a Table,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let at = table.values().next().map_or(Source::Default, |node| node.source.clone());
        let mut section =
            Section { report, path: Vec::new(), table, at, inherited: &EMPTY, asked: Vec::new() };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// Whether anyone sets `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether it is here that one of `keys` is decided: a contradiction that a model inherits
    /// whole is reported where it is, once.
    pub(super) fn decides(&self, keys: &[&str]) -> bool {
        self.inherited.is_empty() || keys.iter().any(|key| self.has(key))
    }

    /// The names of all entries.
    pub(super) fn names(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// The value of `key`, or `default`.
    pub(super) fn read<T>(&mut self, key: &'static str, kind: &Kind<T>, default: T) -> T {
        match self.find(key, kind) {
            Some((value, source)) => {
                self.leaf(key, Some(kind.show(&value)), source);
                value
            }
            None => {
                self.leaf(key, Some(kind.show(&default)), Source::Default);
                default
            }
        }
    }

    /// The value of `key` where it need not have one.
    pub(super) fn optional<T>(&mut self, key: &'static str, kind: &Kind<T>, default: Option<T>) -> Option<T> {
        match default {
            Some(default) => Some(self.read(key, kind, default)),
            None => {
                let found = self.find(key, kind);
                let (value, source) = found.map_or((None, Source::Default), |(v, s)| (Some(v), s));
                self.leaf(key, value.as_ref().map(|value| kind.show(value)), source);
                value
            }
        }
    }

    fn find<T>(&mut self, key: &'static str, kind: &Kind<T>) -> Option<(T, Source)> {
        self.ask(key);
        if let Some(node) = self.table.get(key) {
            return match kind.parse(node, &self.full(key)) {
                Ok(value) => Some((value, node.source.clone())),
                Err(error) => {
                    self.report.errors.push(error);
                    None
                }
            };
        }
        let node = self.inherited.get(key)?;
        // Its error is reported where it is set.
        let value = kind.parse(node, key).ok()?;
        Some((value, Source::Inherited(Box::new(node.source.clone()))))
    }

    /// Reads the table `key`; an absent one is read as an empty one.
    pub(super) fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        self.section_over(key, &EMPTY, read)
    }

    /// Reads the table `key`, with what it lacks looked up where this table's is.
    pub(super) fn subsection<T>(&mut self, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let inherited = match self.inherited.get(key) {
            Some(Node { value: Value::Table(table), .. }) => table,
            _ => &EMPTY,
        };
        self.section_over(key, inherited, read)
    }

    /// Reads the table `key` only when it is there.
    pub(super) fn optional_section<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> Option<T> {
        let present = self.has(key);
        let leaves = self.report.leaves.len();
        let value = self.section(key, read);
        if !present {
            self.report.leaves.truncate(leaves);
        }
        present.then_some(value)
    }

    /// Reads the table `key`, with what it lacks looked up in `inherited`.
    pub(super) fn section_over<T>(
        &mut self,
        key: &str,
        inherited: &Table,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        self.asked.push(key.to_owned());
        let mut path = self.path.clone();
        path.push(key.to_owned());
        let (table, at) = match self.table.get(key) {
            None => (&EMPTY, Source::Default),
            Some(Node { value: Value::Table(table), source, .. }) => (table, source.clone()),
            Some(other) => {
                self.report.errors.push(other.wrong(&dotted(&path), "a table"));
                (&EMPTY, other.source.clone())
            }
        };
        let mut section = Section { report: self.report, path, table, at, inherited, asked: Vec::new() };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// Reports what is wrong with the value of `key` as a whole or beside others.
    pub(super) fn invalid(&mut self, key: &str, reason: impl Into<String>) {
        let at = match self.source(key) {
            Source::Default => self.at.clone(),
            set => set,
        };
        let error = ConfigError::Invalid { at, key: self.full(key), reason: reason.into() };
        self.report.errors.push(error);
    }

    /// Where the value of `key` comes from.
    pub(super) fn source(&self, key: &str) -> Source {
        let inherited = |node: &Node| Source::Inherited(Box::new(node.source.clone()));
        let own = self.table.get(key).map(|node| node.source.clone());
        own.or_else(|| self.inherited.get(key).map(inherited)).unwrap_or(Source::Default)
    }

    /// Reports `key` when it is set, in a table of a kind that has it elsewhere.
    pub(super) fn refuse(&mut self, key: &str, reason: &str) {
        if self.has(key) {
            self.asked.push(key.to_owned());
            self.invalid(key, reason);
        }
    }

    /// Reports what is wrong with the table as a whole.
    pub(super) fn invalid_table(&mut self, reason: impl Into<String>) {
        let error =
            ConfigError::Invalid { at: self.at.clone(), key: dotted(&self.path), reason: reason.into() };
        self.report.errors.push(error);
    }

    fn full(&self, key: &str) -> String {
        let mut path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        path.push(key);
        dotted(&path)
    }

    fn ask(&mut self, key: &str) {
        self.asked.push(key.to_owned());
        let mut path = self.path.clone();
        path.push(key.to_owned());
        self.report.asked.push(path);
    }

    fn leaf(&mut self, key: &'static str, value: Option<toml::Value>, source: Source) {
        self.report.leaves.push(Leaf { table: self.path.clone(), key, value, source });
    }

    /// Reports every key that no `read` has asked for.
    fn finish(self) {
        for (key, node) in self.table {
            if !self.asked.contains(key) {
                let full = self.full(key);
                let hint = self.hint(key);
                self.report.errors.push(ConfigError::UnknownKey { at: node.source.clone(), key: full, hint });
            }
        }
    }

    /// The nearest key of this table, or of all, or else this table's keys.
    fn hint(&self, key: &str) -> String {
        let near = |a: &str, b: &str| strsim::normalized_damerau_levenshtein(a, b);
        let siblings = self.asked.iter().map(|sibling| (near(key, sibling), self.full(sibling)));
        let others = self.report.candidates.iter().map(|candidate| {
            let last = candidate.rsplit('.').next().unwrap_or(candidate);
            // A key of this table is meant, unless it is exactly one of another.
            (if key == last { 0.95 } else { near(key, last) * 0.8 }, candidate.clone())
        });
        let best = |(best, name): (f64, String), (score, other): (f64, String)| {
            if score > best { (score, other) } else { (best, name) }
        };
        match siblings.chain(others).fold((0.0, String::new()), best) {
            (score, nearest) if score >= 0.6 => format!("did you mean `{nearest}`?"),
            _ => format!("the keys here are {}", self.asked.join(", ")),
        }
    }
}
