// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One tool: its definition as clients see it, and the function that serves its calls.

use std::{future::ready, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{arguments, call_context::CallContext, errors::Outcome, json_size::value_bytes, services::Services};

/// A tool with the code behind it.
pub(super) struct ServedTool {
    pub(super) definition: Tool,
    /// Maximum memory of a result; `None` if calls of this tool never become tasks.
    task_result_bytes_max: Option<usize>,
    /// Serves a call; fails if the arguments do not match the schema.
    pub(super) serve: Box<Serve>,
}

pub(super) type Serve =
    dyn for<'a> Fn(&'a Services, JsonObject, &'a CallContext) -> BoxFuture<'a, Outcome> + Send + Sync;

impl ServedTool {
    /// Creates a tool with arguments of the type `A`, without a schema of the result.
    pub(super) fn new<A: DeserializeOwned + JsonSchema + 'static>(
        name: &'static str,
        title: &'static str,
        description: &'static str,
        hints: ToolAnnotations,
        serve: for<'a> fn(&'a Services, A, &'a CallContext) -> BoxFuture<'a, Outcome>,
    ) -> Self {
        let definition = Tool::new(name, description, JsonObject::new()).with_input_schema::<A>();
        let mut definition = definition.with_title(title).with_annotations(hints);
        definition.input_schema = without_formats(&definition.input_schema);
        let schema = Arc::clone(&definition.input_schema);
        let serve: Box<Serve> = Box::new(move |services, arguments, context| {
            arguments::parse(name, &schema, arguments)
                .map_or_else(|fault| ready(Err(fault.into())).boxed(), |arguments| serve(services, arguments, context))
        });
        Self { definition, task_result_bytes_max: None, serve }
    }

    /// Adds the schema of the result.
    pub(super) fn with_result<R: JsonSchema + 'static>(mut self) -> Self {
        self.definition = self.definition.with_output_schema::<R>();
        self.definition.output_schema = self.definition.output_schema.as_deref().map(without_formats);
        self
    }

    /// Lets long calls become tasks. `result_bytes_max` is the maximum memory of a result.
    pub(super) fn with_tasks(self, result_bytes_max: usize) -> Self {
        Self { task_result_bytes_max: Some(result_bytes_max), ..self }
    }

    /// Returns the maximum memory for a call's arguments and result; `None` if the calls never become tasks.
    pub(super) fn task_bytes_max(&self, arguments: Option<&JsonObject>) -> Option<usize> {
        let result_bytes_max = self.task_result_bytes_max?;
        let arguments = arguments.into_iter().flat_map(JsonObject::values);
        Some(arguments.map(value_bytes).sum::<usize>().saturating_add(result_bytes_max))
    }
}

/// Removes the formats of numbers (`uint64`, `double`) from a schema, because some validators reject unknown formats.
fn without_formats(schema: &JsonObject) -> Arc<JsonObject> {
    let mut schema = schema.clone();
    remove_formats(&mut schema);
    Arc::new(schema)
}

fn remove_formats(schema: &mut JsonObject) {
    if schema.get("format").is_some_and(Value::is_string) {
        schema.remove("format");
    }
    for value in schema.values_mut() {
        let items = value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut);
        items.for_each(remove_formats);
        value.as_object_mut().into_iter().for_each(remove_formats);
    }
}
