// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The entries of one page of a listing: the first names after a given name, in the order of their bytes. Its memory is
//! limited, whatever number of names is offered.

use std::collections::BTreeSet;

/// The limits of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLimits {
    /// Maximum number of names, at least one.
    pub(super) entries: usize,
    /// Maximum total length of the names in bytes.
    pub(super) bytes: usize,
}

/// The first names after [`Selection::new`]'s `after`, of the names that were offered.
#[derive(Debug)]
pub(super) struct Selection {
    after: Vec<u8>,
    limits: PageLimits,
    bytes: usize,
    names: BTreeSet<Vec<u8>>,
    /// The first name that is beyond the limits. All names from here on are left out, even if a shorter one would fit.
    end: Option<Vec<u8>>,
}

impl Selection {
    pub(super) fn new(after: Vec<u8>, limits: PageLimits) -> Self {
        Self { after, limits, bytes: 0, names: BTreeSet::new(), end: None }
    }

    /// Selects the name if it belongs to the page.
    pub(super) fn offer(&mut self, name: &[u8]) {
        // A folder that changes while it is read may report a name twice.
        if name <= &self.after[..] || self.is_beyond(name) || self.names.contains(name) {
            return;
        }
        self.bytes += name.len();
        self.names.insert(name.to_vec());
        while self.names.len() > self.limits.entries || self.bytes > self.limits.bytes {
            let Some(last) = self.names.pop_last() else { return };
            self.bytes -= last.len();
            self.end = Some(last);
        }
    }

    /// Returns whether the page can contain names that begin with `prefix` and are longer.
    pub(super) fn can_contain(&self, prefix: &[u8]) -> bool {
        let is_before = prefix < &self.after[..] && !self.after.starts_with(prefix);
        !is_before && !self.is_beyond(prefix)
    }

    /// Returns the last selected name if names follow it.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        self.end.as_ref().and(self.names.last()).cloned()
    }

    /// Returns the selected names in ascending order.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(Vec::as_slice)
    }

    fn is_beyond(&self, name: &[u8]) -> bool {
        self.end.as_ref().is_some_and(|end| name >= &end[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PageLimits = PageLimits { entries: 3, bytes: 10 };

    fn page(after: &str, limits: PageLimits, names: &[&str]) -> (Vec<String>, Option<String>) {
        let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        let mut selection = Selection::new(after.into(), limits);
        names.iter().for_each(|name| selection.offer(name.as_bytes()));
        (selection.names().map(text).collect(), selection.next().as_deref().map(text))
    }

    #[test]
    fn first_names_after_the_given_one_are_selected() {
        let names = ["d", "b", "f", "a", "c", "e", "b"];
        assert_eq!(page("", LIMITS, &names), (vec!["a".into(), "b".into(), "c".into()], Some("c".into())));
        assert_eq!(page("c", LIMITS, &names), (vec!["d".into(), "e".into(), "f".into()], None));
        assert_eq!(page("cc", LIMITS, &names).0, ["d", "e", "f"]);
        assert_eq!(page("f", LIMITS, &names), (vec![], None));
    }

    #[test]
    fn name_that_would_fit_does_not_overtake_one_that_does_not() {
        let names = ["1111", "22222", "33", "000000"];
        assert_eq!(page("", LIMITS, &names), (vec!["000000".into(), "1111".into()], Some("1111".into())));
        assert_eq!(page("1111", LIMITS, &names), (vec!["22222".into(), "33".into()], None));
    }

    /// Any order of the names gives the same pages, and the pages contain each name once.
    #[test]
    fn pages_contain_each_name_once_in_any_order() {
        let mut names: Vec<_> = (0..200).map(|number| "x".repeat(number % 7) + &number.to_string()).collect();
        for shift in 0..20 {
            names.rotate_left(shift);
            names.swap(shift, 199 - shift);
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let (mut seen, mut after) = (Vec::new(), Some(String::new()));
            while let Some(start) = after {
                let (page, next) = page(&start, LIMITS, &names);
                assert!((1..=LIMITS.entries).contains(&page.len()), "{page:?}");
                seen.extend(page);
                after = next;
            }
            let mut sorted = names;
            sorted.sort_unstable();
            assert_eq!(seen, sorted);
        }
    }

    #[test]
    fn folder_outside_of_the_page_cannot_be_contained() {
        let mut selection = Selection::new(b"b/c".to_vec(), LIMITS);
        ["b/d", "b/e", "b/f", "c"].iter().for_each(|name| selection.offer(name.as_bytes()));
        for (prefix, expected) in
            [("a/", false), ("b/", true), ("b/c/", true), ("b/b/", false), ("b/e/", true), ("c/", false)]
        {
            assert_eq!(selection.can_contain(prefix.as_bytes()), expected, "{prefix}");
        }
    }
}
