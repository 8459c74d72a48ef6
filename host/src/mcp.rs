// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The eight tools, as MCP clients see them.
//!
//! Here arguments become the domain's types and causes become one of MCP's two kinds of error: what the caller can mend
//! is a tool result with `isError`, a failure of the server (a panic included) a protocol error. Nothing here decides
//! what a tool does.

mod arguments;
mod environment_tools;
mod errors;
mod execution_tools;
mod file_content;
mod file_tools;
mod progress;
mod results;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::FutureExt as _;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, JsonObject,
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio_util::sync::CancellationToken;

use self::progress::Progress;
use crate::{
    domain::{environment::Principal, image::ImageRef, runtime::ByRuntime},
    service::{environments::Environments, execution::Execution, filesystem::Filesystem},
};

/// A 10 MiB file is 13.4 MiB in base64, and JSON adds its quotes.
pub const REQUEST_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A session without a message is closed when the longest call and then this have passed. A silent call counts as no
/// message, so it must not be less.
const SESSION_IDLE: Duration = Duration::from_secs(10 * 60);

/// Messages that a session holds for a call whose client does not read: all of its reports, and its result. With fewer, a
/// reader that stalls would stall every other call of its session.
const CALL_MESSAGES_MAX: usize = progress::REPORTS_MAX + 8;

/// How long a session keeps an answer that its client may not have got, to be asked for again. It may be megabytes.
const ANSWER_KEPT: Duration = Duration::from_secs(5);

/// The list of tools changes with the program only, so a client need not ask again soon.
const TOOLS_FRESH_MS: u64 = 60 * 60 * 1000;

const INSTRUCTIONS: &str = "\
Waggle gives you isolated Linux machines. The flow: create_environment once (python, node or shell) and keep its \
environment_id; then, as often as you need, write_file, execute, install_packages, read_file and list_files in it; and \
destroy_environment when you are done. Files and installed packages stay until then. Code runs as the user `sandbox` in \
/home/sandbox, each call in a process of its own: variables do not survive a call, files do. A non-zero exit_code is a \
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
}

impl Tools {
    /// Tools over these services.
    #[must_use]
    pub fn new(
        environments: Arc<Environments>,
        execution: Execution,
        filesystem: Filesystem,
        defaults: Defaults,
    ) -> Self {
        Self { inner: Arc::new(Inner { environments, execution, filesystem, defaults }) }
    }

    async fn call(&self, name: &str, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, ErrorData> {
        let inner = &*self.inner;
        let outcome = match name {
            "create_environment" => inner.create_environment(arguments, caller).await,
            "destroy_environment" => inner.destroy_environment(arguments, caller).await,
            "list_environments" => inner.list_environments(arguments, caller),
            "execute" => inner.execute(arguments, caller).await,
            "install_packages" => inner.install_packages(arguments, caller).await,
            "write_file" => inner.write_file(arguments, caller).await,
            "read_file" => inner.read_file(arguments, caller).await,
            "list_files" => inner.list_files(arguments, caller).await,
            _ => {
                let known: Vec<_> = tools().iter().map(|tool| &*tool.name).collect();
                let message = format!("there is no tool of that name; there are {}", known.join(", "));
                return Err(ErrorData::invalid_params(message, None));
            }
        };
        outcome.or_else(|failure| errors::into_reply(name, failure))
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
        let about = Implementation::new("Waggle", env!("CARGO_PKG_VERSION"))
            .with_title("Waggle")
            .with_description("Isolated Linux machines for AI agents.");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(about)
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools().iter().find(|tool| tool.name == name).cloned()
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let list = ListToolsResult::with_all_items(tools().to_vec());
        Ok(list.with_ttl_ms(TOOLS_FRESH_MS).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (progress, report) = progress::channel(context.meta.get_progress_token(), context.peer.clone());
        let caller = Caller { owner: Principal::anonymous(), cancelled: context.ct.clone(), progress };
        let call = self.call(&request.name, request.arguments.unwrap_or_default(), &caller);
        // A panic would leave the client without any answer. Nothing that it could leave half done outlives the call but
        // what the services own, and they hold no lock across a step that can panic.
        let call = AssertUnwindSafe(call).catch_unwind();
        let outcome = tokio::select! {
            outcome = call => outcome,
            never = report => match never {},
        };
        outcome.unwrap_or_else(|_| Err(errors::panicked(&request.name))).map(CallToolResponse::from)
    }
}

/// The tools behind Streamable HTTP.
pub type Endpoint = StreamableHttpService<Tools, LocalSessionManager>;

/// Serves the tools in both dialects: with sessions up to 2025-11-25, without from 2026-07-28 on.
///
/// `hosts` are the names under which clients may reach the server; no call takes longer than `call_max`. Cancelling
/// `stop` ends every open answer.
#[must_use]
pub fn endpoint(tools: Tools, hosts: Vec<String>, call_max: Duration, stop: CancellationToken) -> Endpoint {
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(call_max + SESSION_IDLE);
    sessions.session_config.channel_capacity = CALL_MESSAGES_MAX;
    sessions.session_config.completed_cache_ttl = ANSWER_KEPT;
    let origins = hosts.iter().map(|host| origin(host)).collect::<Vec<_>>();
    // With JSON, a stateless call is answered by one document, but by a stream as soon as it reports progress.
    let config = StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_allowed_hosts(hosts)
        .with_allowed_origins(origins)
        .enforce_origin_validation()
        .with_max_request_body_bytes(REQUEST_BODY_BYTES_MAX)
        .with_cancellation_token(stop);
    StreamableHttpService::new(move || Ok(tools.clone()), Arc::new(sessions), config)
}

/// The pages of a host on any port; an address of IP version 6 stands in brackets.
fn origin(host: &str) -> String {
    if host.contains(':') { format!("http://[{host}]:*") } else { format!("http://{host}:*") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_of_ip_version_6_stands_in_brackets() {
        assert_eq!(origin("localhost"), "http://localhost:*");
        assert_eq!(origin("::1"), "http://[::1]:*");
    }
}
