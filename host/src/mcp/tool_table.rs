// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The table of the eight tools. All other code looks up tools and their names in this table.

use std::sync::LazyLock;

use rmcp::model::Tool;

use super::{environment_tools, execution_tools, file_tools, tool::ServedTool};

/// The tools in the order in which clients see them.
static TOOLS: LazyLock<[ServedTool; 8]> = LazyLock::new(|| {
    [
        environment_tools::create_environment(),
        environment_tools::destroy_environment(),
        environment_tools::list_environments(),
        execution_tools::execute(),
        execution_tools::install_packages(),
        file_tools::write_file(),
        file_tools::read_file(),
        file_tools::list_files(),
    ]
});

/// The definitions of all tools.
#[must_use]
pub fn tools() -> Vec<Tool> {
    TOOLS.iter().map(|tool| tool.definition.clone()).collect()
}

pub(super) fn find(name: &str) -> Option<&'static ServedTool> {
    TOOLS.iter().find(|tool| tool.definition.name == name)
}

/// The names of all tools, for an error.
pub(super) fn names() -> String {
    TOOLS.iter().map(|tool| &*tool.definition.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mcp::execution_tools::RESULT_BYTES_MAX;

    /// Clients cut longer descriptions.
    #[test]
    fn descriptions_are_shorter_than_2_kib() {
        for tool in tools() {
            let description = tool.description.as_deref().unwrap();
            assert!(description.len() < 2048, "{}: {}", tool.name, description.len());
        }
    }

    #[test]
    fn every_tool_has_a_title_and_all_hints() {
        for tool in tools() {
            assert!(tool.title.is_some(), "{}", tool.name);
            let hints = tool.annotations.as_ref().unwrap();
            let all = [hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint];
            assert!(all.iter().all(Option::is_some), "{}: {hints:?}", tool.name);
            assert!(!(hints.read_only_hint == Some(true) && hints.destructive_hint == Some(true)), "{}", tool.name);
            let schemas = serde_json::to_string(&(&tool.input_schema, &tool.output_schema)).unwrap();
            assert!(!schemas.contains("\"format\""), "{}", tool.name);
        }
    }

    #[test]
    fn task_size_counts_the_arguments_and_the_largest_result() {
        let bytes_max = |tool: &str, stdin: usize| {
            let arguments = json!({"code": "cat", "stdin": "x".repeat(stdin)});
            find(tool).unwrap().task_bytes_max(arguments.as_object())
        };
        let arguments = bytes_max("execute", 1_000_000).unwrap() - RESULT_BYTES_MAX;
        assert!((1_000_000..1_001_000).contains(&arguments), "{arguments}");
        assert_eq!(bytes_max("read_file", 0), None);
    }
}
