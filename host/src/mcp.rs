// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! MCP: the eight tools as clients see them.
//!
//! This module parses arguments into the domain's types, and converts faults into MCP's two kinds of error. A fault of
//! a tool call that the caller can fix is a tool result with `isError`. An unknown tool or task, and a failure of the
//! server (a panic, for example), is a protocol error. The logic of the tools is in `service`.
//!
//! `tool_table` lists the tools; each tool is a method of `Services` in `environment_tools`, `execution_tools` or
//! `file_tools`. This file dispatches requests to the tools. `sessions` and `tasks` contain state that outlives
//! requests.

mod admission;
mod arguments;
mod call_context;
mod command_result;
mod conversation;
mod endpoint;
mod environment_tools;
mod errors;
mod execution_tools;
mod failure;
mod file_content;
mod file_tools;
mod formats;
mod id_limit;
mod identity;
mod json_size;
mod memory;
mod progress;
mod request_context;
mod results;
mod resumed_note;
mod schemas;
mod services;
mod sessions;
mod size_arguments;
mod surrogates;
mod tasks;
mod tool;
mod tool_table;

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use rmcp::{
    ErrorData,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CancelTaskParams, CreateTaskResult, GetTaskParams,
        GetTaskResult, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        UpdateTaskParams,
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use rmcp::ServerHandler;

use self::{
    admission::Admission,
    call_context::CallContext,
    failure::{Failure, Outcome},
    identity::sign,
    request_context::{Context, Origin, accepts_tasks, is_stateless, memory},
    services::Services,
    tasks::{RunningCall, Tasks},
    tool::ServedTool,
};
pub use self::{
    admission::CallLimits,
    conversation::{ConverseFault, converse, standard_streams},
    endpoint::{Endpoint, EndpointRules, REQUEST_BODY_BYTES_MAX, endpoint},
    errors::data as error_data,
    memory::RequestMemory,
    services::Defaults,
    sessions::{SessionRefusal, on_behalf},
    tool_table::tools,
};
pub(crate) use self::{
    formats::rfc3339,
    id_limit::{has_long_id, long_id_message},
    surrogates::replace_lone_surrogates,
};
use crate::{
    domain::principal::Principal,
    service::{environments::Environments, execution::Execution, filesystem::Filesystem},
    telemetry::STAGES,
};

/// The time for which a client may cache the list of tools. The list changes only with the program's version.
const TOOLS_FRESH_MS: u64 = 60 * 60 * 1000;

const INSTRUCTIONS: &str = "\
Waggle gives you isolated Linux machines. The flow: call create_environment once (python, node or shell) and keep the \
environment_id; then, as often as you need, call write_file, execute, install_packages, read_file and list_files with \
this id; and call destroy_environment when you are done. Files and installed packages stay until then. Code runs as \
the user `sandbox`, whose home is /home/sandbox. Each call is a separate process: files persist between calls, \
variables do not. A non-zero exit_code is a result, not an error. An environment that receives no call during its \
idle timeout (30 minutes by default) is destroyed, or suspended until the next call.";

/// The handler of all requests from MCP clients.
#[derive(Clone, Debug)]
pub struct Tools {
    services: Arc<Services>,
    admission: Admission,
    tasks: Tasks,
    origin: Origin,
}

impl Tools {
    /// Creates the handler of HTTP requests over these services. `call_max` is the longest of the timeouts for
    /// `execute`, `install_packages` and a machine's boot.
    #[must_use]
    pub fn new(
        environments: Arc<Environments>,
        execution: Execution,
        filesystem: Filesystem,
        defaults: Defaults,
        limits: CallLimits,
        call_max: Duration,
    ) -> Self {
        let services = Arc::new(Services::new(environments, execution, filesystem, defaults));
        Self { services, admission: Admission::new(limits), tasks: Tasks::new(call_max), origin: Origin::Http }
    }

    /// Returns a handler of the requests of the client that started the server.
    #[must_use]
    pub fn for_standard_input(&self) -> Self {
        Self { origin: Origin::StandardInput, ..self.clone() }
    }

    /// Cancels the calls that have become tasks, and refuses new tasks.
    pub fn cancel_tasks(&self) {
        self.tasks.close();
    }

    /// Drops all tasks, and waits until their calls have ended.
    pub async fn end_tasks(&self) {
        self.tasks.end().await;
    }

    /// Returns the future of a call. The call can outlive its request.
    fn begin(
        &self,
        tool: Option<&'static ServedTool>,
        request: CallToolRequestParams,
        context: CallContext,
    ) -> BoxFuture<'static, Outcome> {
        let name = tool.map_or("unknown", |tool| &*tool.definition.name);
        let whole = tracing::debug_span!(target: STAGES, "call", tool = %name);
        let (services, admission) = (Arc::clone(&self.services), self.admission.clone());
        let call = async move {
            let _permit = admission.admit(&context.owner)?;
            let Some(tool) = tool else { return Err(Failure::UnknownTool { available: tool_table::names() }) };
            tool.call(&services, request.arguments.unwrap_or_default(), &context).await
        };
        // An uncaught panic would leave the client without an answer. Catching the panic is safe: only the state of the
        // services outlives the call, and the services hold no lock across a step that can panic.
        let call = AssertUnwindSafe(call.instrument(whole)).catch_unwind();
        call.map(|outcome| outcome.unwrap_or(Err(Failure::Panic))).boxed()
    }

    /// Answers with the result of the call, or with a task if the call is long and the client accepts tasks.
    async fn answer(&self, request: CallToolRequestParams, context: Context) -> Result<CallToolResponse, ErrorData> {
        let tool = tool_table::find(&request.name);
        let tasks_tool = tool.filter(|_| accepts_tasks(&context));
        let bytes_max = tasks_tool.and_then(|tool| tool.task_bytes_max(request.arguments.as_ref()));
        let token = context.meta.get_progress_token();
        let (progress, report) = progress::channel(token, context.peer.clone(), bytes_max.is_some());
        let (name, owner, cancelled) =
            (request.name.to_string(), self.origin.principal(&context)?, CancellationToken::new());
        let call_context = CallContext {
            owner: owner.clone(),
            cancelled: cancelled.clone(),
            progress: progress.clone(),
            memory: memory(&context),
        };
        let mut call = self.begin(tool, request, call_context);
        // A task continues after its request ends, so each call has its own cancellation token. While the request is
        // open, cancelling the request cancels the call.
        let forward_cancel = async {
            context.ct.cancelled().await;
            cancelled.cancel();
        };
        let mut background = pin!(async { tokio::join!(report, forward_cancel).0 });
        if let Some(bytes_max) = bytes_max {
            tokio::select! {
                biased;
                outcome = &mut call => return reply(&name, &owner, outcome),
                never = &mut background => match never {},
                () = sleep(tasks::START_AFTER) => {}
            }
            if !cancelled.is_cancelled() {
                let (tool, cancelled) = (name.clone(), cancelled.clone());
                let owner = owner.clone();
                let running = RunningCall { owner, tool, outcome: call, cancelled, progress, bytes_max };
                call = match self.tasks.start(running) {
                    Ok(task) => return Ok(CreateTaskResult::new(task).into()),
                    Err(call) => call,
                };
            }
        }
        tokio::select! {
            outcome = call => reply(&name, &owner, outcome),
            never = background => match never {},
        }
    }
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
            .with_server_info(identity::about())
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tool_table::find(name).map(|tool| tool.definition.clone())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        context: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut list = ListToolsResult::with_all_items(tools());
        sign(&mut list.meta, is_stateless(&context));
        Ok(list.with_ttl_ms(TOOLS_FRESH_MS).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: Context) -> Result<CallToolResponse, ErrorData> {
        let is_stateless = is_stateless(&context);
        let mut response = self.answer(request, context).await?;
        match &mut response {
            CallToolResponse::Complete(result) => sign(&mut result.meta, is_stateless),
            CallToolResponse::Task(created) => sign(&mut created.meta, is_stateless),
            CallToolResponse::InputRequired(_) | _ => {}
        }
        Ok(response)
    }

    async fn get_task(&self, request: GetTaskParams, context: Context) -> Result<GetTaskResult, ErrorData> {
        let (owner, tasks) = (self.origin.principal(&context)?, &self.tasks);
        let mut reserved = None;
        // A task may end while this loop waits for memory, so the loop checks the size again after each reservation.
        while let bytes = tasks.outcome_bytes(&owner, &request.task_id)?
            && reserved.is_none_or(|reserved| reserved < bytes)
        {
            let reservation =
                self.services.reserve_result(&owner, bytes).await.map_err(|fault| errors::no_memory(&fault))?;
            memory(&context).hold_result(reservation);
            reserved = Some(bytes);
        }
        let mut result = tasks.get(&owner, &request.task_id).map(GetTaskResult::new)?;
        sign(&mut result.meta, is_stateless(&context));
        Ok(result)
    }

    async fn update_task(&self, request: UpdateTaskParams, context: Context) -> Result<(), ErrorData> {
        self.tasks.update(&self.origin.principal(&context)?, &request.task_id)
    }

    async fn cancel_task(&self, request: CancelTaskParams, context: Context) -> Result<(), ErrorData> {
        self.tasks.cancel(&self.origin.principal(&context)?, &request.task_id)
    }
}

fn reply(tool: &str, caller: &Principal, outcome: Outcome) -> Result<CallToolResponse, ErrorData> {
    outcome.or_else(|failure| errors::into_reply(tool, caller, failure)).map(CallToolResponse::from)
}

#[cfg(test)]
mod tests {
    /// Clients cut longer instructions.
    #[test]
    fn instructions_are_shorter_than_2_kib() {
        let bytes = super::INSTRUCTIONS.len();
        assert!(bytes < 2048, "{bytes}");
    }
}
