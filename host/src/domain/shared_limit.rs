// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A limit that all callers share, and the part of it that one caller may use.

/// A limit on the number of environments, sessions or calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SharedLimit {
    /// Maximum for all callers together.
    pub all: usize,
    /// Maximum for each caller; `None` for the default.
    pub per_caller: Option<usize>,
}

impl SharedLimit {
    /// Returns the maximum for each of `callers`. By default, a single caller may use everything, and each of several
    /// callers at most half, so that there is always something left for another one.
    #[must_use]
    pub fn share(self, callers: usize) -> usize {
        let default = if callers > 1 { self.all.div_ceil(2) } else { self.all };
        self.per_caller.unwrap_or(default).min(self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_caller_may_use_everything_and_several_callers_half_each() {
        let shares = |all, per_caller| [0, 1, 2, 50].map(|callers| SharedLimit { all, per_caller }.share(callers));
        assert_eq!(shares(10, None), [10, 10, 5, 5]);
        assert_eq!((shares(1, None), shares(3, None)), ([1; 4], [3, 3, 2, 2]));
        assert_eq!((shares(10, Some(3)), shares(10, Some(11))), ([3; 4], [10; 4]));
    }
}
