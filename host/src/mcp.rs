// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The eight tools, as MCP clients see them.
//!
//! Here arguments become the domain's types and causes become one of MCP's two kinds of error: what the caller can mend
//! is a tool result with `isError`, a failure of the server (a panic included) a protocol error. Nothing here decides
//! what a tool does.

mod admission;
mod arguments;
mod conversation;
mod endpoint;
mod environment_tools;
mod errors;
mod execution_tools;
mod file_content;
mod file_tools;
mod identity;
mod kept;
mod progress;
mod results;
mod sessions;
mod tasks;

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use rmcp::{
    ErrorData, RoleServer,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CancelTaskParams, CreateTaskResult, GetTaskParams,
        GetTaskResult, JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        UpdateTaskParams,
    },
    service::RequestContext,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use rmcp::ServerHandler;

pub(crate) use self::results::rfc3339;
use self::{
    admission::Admission,
    errors::Failure,
    identity::{is_stateless, sign},
    progress::Progress,
    tasks::{Call, Outcome, PATIENCE, Tasks},
};
pub use self::{
    admission::CallLimits,
    conversation::{ConverseFault, converse, standard_streams},
    endpoint::{Endpoint, EndpointRules, REQUEST_BODY_BYTES_MAX, endpoint},
    errors::data as error_data,
    kept::Kept,
    sessions::{SessionRefusal, on_behalf},
};
use crate::{
    budget::{Budget, Room},
    domain::{image::ImageRef, principal::Principal, runtime::ByRuntime},
    service::{environments::Environments, execution::Execution, fault::CallerFault, filesystem::Filesystem},
    telemetry::STAGES,
};

/// The list of tools changes with the program only, so a client need not ask again soon.
const TOOLS_FRESH_MS: u64 = 60 * 60 * 1000;

/// What all results hold together that are being made or written, in bytes as the guests sent them: six of the largest
/// files, or 64 of the longest outputs. JSON can make a dozen times as much of an output.
const RESULTS_BYTES: usize = 64 * 1024 * 1024;

/// How long a result waits for others to be read.
const RESULT_ROOM_TIME: Duration = Duration::from_secs(30);

const INSTRUCTIONS: &str = "\
Waggle gives you isolated Linux machines. The flow: create_environment once (python, node or shell) and keep its \
environment_id; then, as often as you need, write_file, execute, install_packages, read_file and list_files in it; and \
destroy_environment when you are done. Files and installed packages stay until then. Code runs as the user `sandbox`, \
whose home is /home/sandbox, each call in a process of its own: variables do not survive a call, files do. A non-zero exit_code is a \
result, not an error. An environment that nobody calls for its idle time-out (30 minutes by default) is destroyed.";

/// What the tools work on.
#[derive(Clone, Debug)]
pub struct Tools {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    environments: Arc<Environments>,
    execution: Execution,
    filesystem: Filesystem,
    defaults: Defaults,
    admission: Admission,
    results: Budget,
    tasks: Tasks,
}

/// What a client gets that does not say what it wants.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The image of each runtime.
    pub images: ByRuntime<ImageRef>,
    /// How long an environment may idle.
    pub idle_timeout: Duration,
}

/// What a tool needs to know of the call that it serves.
struct Caller {
    owner: Principal,
    cancelled: CancellationToken,
    progress: Progress,
    kept: Kept,
}

impl Tools {
    /// Tools over these services; no command that they run takes longer than `call_max`.
    #[must_use]
    pub fn new(
        environments: Arc<Environments>,
        execution: Execution,
        filesystem: Filesystem,
        defaults: Defaults,
        limits: CallLimits,
        call_max: Duration,
    ) -> Self {
        let (admission, results, tasks) = (Admission::new(limits), Budget::new(RESULTS_BYTES), Tasks::new(call_max));
        Self { inner: Arc::new(Inner { environments, execution, filesystem, defaults, admission, results, tasks }) }
    }

    /// Cancels the calls that have become tasks, and lets none become one from now on.
    pub fn cancel_tasks(&self) {
        self.inner.tasks.close();
    }

    /// Drops every task; returns when nothing of one is left.
    pub async fn end_tasks(&self) {
        self.inner.tasks.end().await;
    }

    async fn call(&self, name: &str, arguments: JsonObject, caller: &Caller) -> Outcome {
        let inner = &*self.inner;
        let _admitted = inner.admission.begin(&caller.owner)?;
        match name {
            "create_environment" => inner.create_environment(arguments, caller).await,
            "destroy_environment" => inner.destroy_environment(arguments, caller).await,
            "list_environments" => inner.list_environments(arguments, caller),
            "execute" => inner.execute(arguments, caller).await,
            "install_packages" => inner.install_packages(arguments, caller).await,
            "write_file" => inner.write_file(arguments, caller).await,
            "read_file" => inner.read_file(arguments, caller).await,
            "list_files" => inner.list_files(arguments, caller).await,
            _ => Err(Failure::UnknownTool),
        }
    }

    /// The call as a whole, which needs nothing of the request that it came with.
    fn begin(&self, request: CallToolRequestParams, caller: Caller) -> BoxFuture<'static, Outcome> {
        let tool = self.get_tool(&request.name).map_or_else(|| "unknown".into(), |tool| tool.name);
        let whole = tracing::debug_span!(target: STAGES, "call", %tool);
        let tools = self.clone();
        let call = async move { tools.call(&request.name, request.arguments.unwrap_or_default(), &caller).await };
        // A panic would leave the client without any answer. Nothing that it could leave half done outlives the call
        // but what the services own, and they hold no lock across a step that can panic.
        let call = AssertUnwindSafe(call.instrument(whole)).catch_unwind();
        call.map(|outcome| outcome.unwrap_or(Err(Failure::Panic))).boxed()
    }

    /// Answers with the call's result, or with a task where the client takes one and the call takes long.
    async fn answer(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let bytes_max = if takes_tasks(&context) { tasks::bytes_max(&request) } else { None };
        let token = context.meta.get_progress_token();
        let (progress, report) = progress::channel(token, context.peer.clone(), bytes_max.is_some());
        let (tool, owner, cancelled) = (request.name.to_string(), principal(&context), CancellationToken::new());
        let kept = kept(&context);
        let caller = Caller { owner: owner.clone(), cancelled: cancelled.clone(), progress: progress.clone(), kept };
        let mut call = self.begin(request, caller);
        // A task goes on when its request is over, so it has a token of its own, which hears of the request's
        // meanwhile.
        let hear = async {
            context.ct.cancelled().await;
            cancelled.cancel();
        };
        let mut beside = pin!(async { tokio::join!(report, hear).0 });
        if let Some(bytes_max) = bytes_max {
            tokio::select! {
                biased;
                outcome = &mut call => return reply(&tool, outcome),
                never = &mut beside => match never {},
                () = sleep(PATIENCE) => {}
            }
            if !cancelled.is_cancelled() {
                let (tool, cancelled) = (tool.clone(), cancelled.clone());
                let handed = Call { owner, tool, running: call, cancelled, progress, bytes_max };
                call = match self.inner.tasks.hand_over(handed) {
                    Ok(task) => return Ok(CreateTaskResult::new(task).into()),
                    Err(call) => call,
                };
            }
        }
        tokio::select! {
            outcome = call => reply(&tool, outcome),
            never = beside => match never {},
        }
    }
}

impl Inner {
    /// Room for a result of so many bytes, as the guest sends them.
    async fn result_room(&self, owner: &Principal, bytes: usize) -> Result<Room, CallerFault> {
        let room = timeout(RESULT_ROOM_TIME, self.results.room(owner, bytes)).await;
        room.map_err(|_elapsed| CallerFault::ResultsUnread)
    }
}

/// The tools in the order in which clients see them.
#[must_use]
pub fn tools() -> &'static [Tool] {
    static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
        vec![
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
    &TOOLS
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
            .with_server_info(identity::about())
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools().iter().find(|tool| tool.name == name).cloned()
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut list = ListToolsResult::with_all_items(tools().to_vec());
        sign(&mut list.meta, is_stateless(&context));
        Ok(list.with_ttl_ms(TOOLS_FRESH_MS).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let is_stateless = is_stateless(&context);
        let mut response = self.answer(request, context).await?;
        match &mut response {
            CallToolResponse::Complete(result) => sign(&mut result.meta, is_stateless),
            CallToolResponse::Task(created) => sign(&mut created.meta, is_stateless),
            CallToolResponse::InputRequired(_) | _ => {}
        }
        Ok(response)
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let (owner, tasks) = (principal(&context), &self.inner.tasks);
        let mut had = None;
        // The task may come to its end while room is waited for.
        while let bytes = tasks.outcome_bytes(&owner, &request.task_id)?
            && had.is_none_or(|had| had < bytes)
        {
            let room = self.inner.result_room(&owner, bytes).await.map_err(|fault| errors::no_room(&fault))?;
            kept(&context).keep(room);
            had = Some(bytes);
        }
        let mut got = tasks.get(&owner, &request.task_id).map(GetTaskResult::new)?;
        sign(&mut got.meta, is_stateless(&context));
        Ok(got)
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.inner.tasks.update(&principal(&context), &request.task_id)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.inner.tasks.cancel(&principal(&context), &request.task_id)
    }
}

fn reply(tool: &str, outcome: Outcome) -> Result<CallToolResponse, ErrorData> {
    outcome.or_else(|failure| errors::into_reply(tool, failure)).map(CallToolResponse::from)
}

/// Whether the client knows what to do with a task. Dialects with sessions cannot tell one from a result.
fn takes_tasks(context: &RequestContext<RoleServer>) -> bool {
    is_stateless(context) && context.client_capabilities().is_some_and(|can| can.supports_tasks())
}

/// Whose request it is. What comes over standard input has no HTTP request behind it, and none but the one who started
/// the server can write there.
fn principal(context: &RequestContext<RoleServer>) -> Principal {
    match context.extensions.get::<::http::request::Parts>() {
        Some(parts) => parts.extensions.get::<Principal>().cloned().unwrap_or_else(Principal::anonymous),
        None => Principal::local(),
    }
}

/// What the request holds until its answer is out. What comes over standard input has one reader, who is the operator.
fn kept(context: &RequestContext<RoleServer>) -> Kept {
    let parts = context.extensions.get::<::http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<Kept>()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients keep no more than 2 KiB of either.
    #[test]
    fn what_a_model_is_told_fits() {
        assert!(INSTRUCTIONS.len() < 2048, "{}", INSTRUCTIONS.len());
        for tool in tools() {
            let description = tool.description.as_deref().unwrap();
            assert!(description.len() < 2048, "{}: {}", tool.name, description.len());
        }
    }

    #[test]
    fn every_tool_has_a_title_and_says_what_it_may_do() {
        for tool in tools() {
            assert!(tool.title.is_some(), "{}", tool.name);
            let hints = tool.annotations.as_ref().unwrap();
            let said = [hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint];
            assert!(said.iter().all(Option::is_some), "{}: {hints:?}", tool.name);
            assert!(!(hints.read_only_hint == Some(true) && hints.destructive_hint == Some(true)), "{}", tool.name);
            let schemas = serde_json::to_string(&(&tool.input_schema, &tool.output_schema)).unwrap();
            assert!(!schemas.contains("\"format\""), "{}", tool.name);
        }
    }
}
