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
    use rmcp::model::JsonObject;
    use serde_json::json;

    use super::*;
    use crate::mcp::execution_tools::RESULT_BYTES_MAX;

    /// Clients cut longer descriptions.
    #[test]
    fn descriptions_are_shorter_than_2_kib() {
        for tool in tools() {
            let description = tool.description.as_deref().unwrap();
            assert!(description.len() < 2048, "{}: {}", tool.name, description.len());
            // Traces of lines that were wrapped badly.
            assert!(!description.contains("- ") && !description.contains("  "), "{description}");
        }
    }

    /// Checks a schema and all schemas in it.
    fn check_schema(at: &str, schema: &JsonObject) {
        for keyword in ["anyOf", "oneOf", "allOf", "const", "$schema", "$ref", "$defs", "format"] {
            assert!(!schema.contains_key(keyword), "{at}: {keyword}");
        }
        let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{at}: the type is not one name"));
        assert_ne!(kind, "null", "{at}");
        assert_ne!(schema.get("additionalProperties"), Some(&json!(false)), "{at}");
        for choice in schema.get("enum").into_iter().flat_map(|choices| choices.as_array().unwrap()) {
            assert!(choice.is_string(), "{at}: {choice}");
        }
        if kind == "object" {
            for (name, inner) in schema["properties"].as_object().unwrap() {
                check_schema(&format!("{at}.{name}"), inner.as_object().unwrap());
            }
        }
        for keyword in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(keyword) {
                check_schema(&format!("{at}.{keyword}"), inner.as_object().unwrap());
            }
        }
        assert_eq!(kind == "array", schema.contains_key("items"), "{at}");
    }

    /// Converters in agent frameworks know only a part of JSON Schema.
    #[test]
    fn schemas_have_only_what_every_client_can_read() {
        for tool in tools() {
            check_schema(&tool.name, &tool.input_schema);
            assert_eq!(tool.output_schema.is_some(), tool.name != "read_file");
            if let Some(schema) = &tool.output_schema {
                check_schema(&format!("{} result", tool.name), schema);
            }
        }
    }

    /// Frameworks make function parameters of arguments, and reserve some names for their own.
    #[test]
    fn arguments_have_names_that_frameworks_and_languages_allow() {
        let reserved = "runtime config callbacks run_manager self args kwargs False None True and as assert async \
            await break class continue def del elif else except finally for from global if import in \
            is lambda nonlocal not or pass raise return try while with yield arguments case catch \
            const debugger default delete do enum eval export extends false function implements \
            instanceof interface let new null package private protected public static super switch \
            this throw true typeof var void";
        for tool in tools() {
            for name in tool.input_schema["properties"].as_object().unwrap().keys() {
                assert!(!reserved.split_whitespace().any(|word| word == name), "{}: {name}", tool.name);
            }
        }
    }

    /// Every request of an agent to its model repeats the tools.
    #[test]
    fn definitions_that_models_get_are_short() {
        let shown =
            |tool: Tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema});
        let bytes = tools().into_iter().map(|tool| shown(tool).to_string().len()).sum::<usize>();
        assert!(bytes < 12_000, "{bytes}");
    }

    #[test]
    fn every_tool_has_a_title_and_all_hints() {
        for tool in tools() {
            assert!(tool.title.is_some(), "{}", tool.name);
            let hints = tool.annotations.as_ref().unwrap();
            let all = [hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint];
            assert!(all.iter().all(Option::is_some), "{}: {hints:?}", tool.name);
            assert!(!(hints.read_only_hint == Some(true) && hints.destructive_hint == Some(true)), "{}", tool.name);
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
