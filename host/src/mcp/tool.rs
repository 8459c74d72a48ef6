// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One tool: its definition as clients see it, and the function that serves its calls.

use std::{future::ready, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use rmcp::model::{JsonObject, MetaObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    arguments::{self, Alias},
    call_context::CallContext,
    failure::Outcome,
    json_size::value_bytes,
    schemas::plain,
    services::Services,
};

/// The key in a tool's `_meta` with the maximum characters of a result that Claude Code shows to its model. It stores a
/// longer result in a file on the client's host, which no code in the environment can read.
const RESULT_CHARS_META: &str = "anthropic/maxResultSizeChars";

/// Enough for two outputs of the default size in JSON.
const RESULT_CHARS_MAX: usize = 200_000;

/// A tool with the code behind it.
pub(super) struct ServedTool {
    pub(super) definition: Tool,
    /// Maximum memory of a result; `None` if calls of this tool never become tasks.
    task_result_bytes_max: Option<usize>,
    alias: Option<Alias>,
    /// The argument with a list in a string, which clients may also send as an array.
    list: Option<&'static str>,
    /// Serves a call; fails if the arguments do not match the schema.
    serve: Box<Serve>,
}

type Serve = dyn for<'a> Fn(&'a Services, JsonObject, &'a CallContext) -> BoxFuture<'a, Outcome> + Send + Sync;

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
        definition.input_schema = plain(&definition.input_schema);
        let schema = Arc::clone(&definition.input_schema);
        let serve: Box<Serve> = Box::new(move |services, arguments, context| {
            arguments::parse(name, &schema, arguments)
                .map_or_else(|fault| ready(Err(fault.into())).boxed(), |arguments| serve(services, arguments, context))
        });
        Self { definition, task_result_bytes_max: None, alias: None, list: None, serve }
    }

    /// Serves a call.
    pub(super) fn call<'a>(
        &'a self,
        services: &'a Services,
        mut arguments: JsonObject,
        context: &'a CallContext,
    ) -> BoxFuture<'a, Outcome> {
        if let Some(name) = self.list {
            arguments::write_list(&mut arguments, name);
        }
        match self.alias.map(|alias| arguments::rename(&mut arguments, alias)).transpose() {
            Ok(_) => (self.serve)(services, arguments, context),
            Err(fault) => ready(Err(fault.into())).boxed(),
        }
    }

    /// Takes the argument `name` by the name `alias` as well, which is not in the schema.
    pub(super) fn with_alias(self, alias: &'static str, name: &'static str) -> Self {
        Self { alias: Some(Alias { alias, name }), ..self }
    }

    /// Takes an array for the argument `name`, which the schema describes as a string.
    pub(super) fn with_list(self, name: &'static str) -> Self {
        Self { list: Some(name), ..self }
    }

    /// Lets clients that limit the size of results show those of this tool whole.
    pub(super) fn with_large_results(mut self) -> Self {
        let mut meta = MetaObject::default();
        meta.0.insert(RESULT_CHARS_META.to_owned(), json!(RESULT_CHARS_MAX));
        self.definition.meta = Some(meta);
        self
    }

    /// Adds the schema of the result.
    pub(super) fn with_result<R: JsonSchema + 'static>(mut self) -> Self {
        self.definition = self.definition.with_output_schema::<R>();
        self.definition.output_schema = self.definition.output_schema.as_deref().map(plain);
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
