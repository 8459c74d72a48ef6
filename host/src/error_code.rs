// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Error codes for programs, with their meanings and hints.
//!
//! The meaning of a code never changes, and no code is ever removed; the texts may change. `docs/errors.md` is
//! generated from this list.

use std::fmt::Write as _;

/// The part of the protocol in which a client sees an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// A tool result with `isError`: the caller can fix the error.
    Result,
    /// A JSON-RPC error: the tool or the task is unknown, or the server failed.
    Protocol,
    /// The response to an HTTP request that did not reach a tool.
    Http,
}

macro_rules! codes {
    ($($variant:ident, $text:literal, $place:ident, $meaning:literal, $hint:literal;)*) => {
        /// The code of an error.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ErrorCode {
            /// All codes, in the order of `docs/errors.md`.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the code as programs see it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns advice for a model, as a sentence.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }

            /// Returns the meaning, as a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// Returns the part of the protocol in which a client sees the error.
            #[must_use]
            pub fn place(self) -> Place {
                match self { $(Self::$variant => Place::$place,)* }
            }
        }
    };
}

codes! {
    InvalidArgument, "invalid_argument", Result,
        "An argument is missing, unknown, of the wrong type or out of range.",
        "Correct the argument that the message names, then retry.";
    EnvironmentNotFound, "environment_not_found", Result,
        "You have no environment with this id.",
        "Call list_environments to see the ids of your environments, or create_environment to create a new \
         environment.";
    EnvironmentDestroyed, "environment_destroyed", Result,
        "The environment was destroyed before or during the call, for example on request or after its idle timeout.",
        "Call create_environment to create a new environment; the files of the destroyed environment are lost.";
    EnvironmentNotRunning, "environment_not_running", Result,
        "The environment exists but takes no calls: it is being created or destroyed, or its machine failed.",
        "Call list_environments to see the environment's status. If the status is \"error\", destroy the \
         environment and create a new one.";
    EnvironmentBusy, "environment_busy", Result,
        "The environment runs its maximum number of calls, and none of them ended while the call waited.",
        "Retry when a call in this environment has ended. For execute, you can set a longer timeout_seconds.";
    CapacityReached, "capacity_reached", Result,
        "The server has reached its maximum number of environments.",
        "Destroy an environment that you no longer need, or retry later.";
    CallerCapacityReached, "caller_capacity_reached", Result,
        "You have reached your own maximum number of environments; environments of other callers do not count.",
        "Destroy one of your environments that you no longer need; list_environments shows them.";
    HostDiskLow, "host_disk_low", Result,
        "The server's disk has less free space than its reserve, so the server neither creates nor saves environments.",
        "Destroy environments that you no longer need, and retry later; if the error persists, tell the server's \
         operator.";
    SavedLimitReached, "saved_limit_reached", Result,
        "You have reached your maximum number or size of saved environments; those of other callers do not count.",
        "Remove a saved environment that you no longer need, or save under the name of one, which replaces it; \
         list_environments shows them.";
    SavedSpaceReached, "saved_space_reached", Result,
        "The saved environments of all callers together have reached their maximum size.",
        "Remove saved environments that you no longer need, or tell the server's operator.";
    SavedNotFound, "saved_not_found", Result,
        "You have no saved environment with this name.",
        "Call list_environments to see the names of your saved environments.";
    CallsRunning, "calls_running", Result,
        "The environment runs calls, and can be forked or saved only while it runs none.",
        "Retry when the calls have ended. For a fork, you can set wait: true.";
    SaveFailed, "save_failed", Result,
        "The server failed to save or fork an environment, or to remove one; the environment still exists.",
        "Retry the call once; if the call fails again, tell the server's operator.";
    ResumeFailed, "resume_failed", Result,
        "The server failed to bring back a suspended or saved environment; its saved state is kept.",
        "Retry the call once; if the call fails again, tell the server's operator, or destroy the environment.";
    SavedDamaged, "saved_damaged", Result,
        "The files of the suspended or saved environment are damaged, so it cannot come back.",
        "Do not retry: create a new environment, and destroy a suspended one that is damaged. The server's operator \
         still has the damaged files of a saved one.";
    SavingUnavailable, "saving_unavailable", Result,
        "The server cannot save environments or bring them back: its operator has disabled it, its machines cannot be \
         saved, or another server holds the saved environments.",
        "Continue without saving, or tell the server's operator.";
    TooManyCalls, "too_many_calls", Result,
        "The server, or this caller, already runs its maximum number of calls.",
        "Retry when other calls have ended.";
    ResultsUnread, "results_unread", Result,
        "The server's buffer for results is full of results that clients have not read.",
        "Read the results of your earlier calls, request less data at a time, or retry a little later.";
    RuntimeUnavailable, "runtime_unavailable", Result,
        "The environment's image has no interpreter or package manager for this runtime.",
        "Use another language, or create an environment with another language.";
    TimedOut, "timed_out", Result,
        "The command reached its timeout, and all processes of the call were killed.",
        "For execute, set a longer timeout_seconds, or start the work in the background and read its log later. For \
         install_packages, install fewer packages at a time.";
    Cancelled, "cancelled", Result,
        "The caller cancelled the call, and all processes of the call were killed; an installation of system packages \
         gets a minute at most to finish.",
        "Retry if you need the result.";
    NotFound, "not_found", Result,
        "No file or folder exists at the path.",
        "Call list_files on the parent folder to see which files and folders exist.";
    IsADirectory, "is_a_directory", Result,
        "The path is a folder, but the call needs a file.",
        "Call list_files to see the entries of the folder.";
    NotADirectory, "not_a_directory", Result,
        "The path or a part of the path is a file, but the call needs a folder.",
        "Call list_files on the parent folder to see which files and folders exist.";
    NotARegularFile, "not_a_regular_file", Result,
        "The path is a device, a socket or a pipe.",
        "Use execute for devices, sockets and pipes.";
    PermissionDenied, "permission_denied", Result,
        "The user named sandbox has no permission for this operation on the path.",
        "Use a path below /home/sandbox or /tmp.";
    TooLarge, "too_large", Result,
        "The file or its requested part is larger than one call can read, or the folder has too many entries.",
        "Read a file in smaller parts with offset and limit; list the subfolders of a folder, or use execute.";
    NoSpace, "no_space", Result,
        "The environment's disk is full.",
        "Use execute to delete files that are no longer needed.";
    ReadOnly, "read_only", Result,
        "The path is on a read-only file system.",
        "Use a path below /home/sandbox or /tmp.";
    InvalidPath, "invalid_path", Result,
        "The environment's kernel rejects the path as invalid.",
        "Give an absolute path, or one relative to /home/sandbox.";
    GuestBusy, "guest_busy", Result,
        "The environment is too busy to begin the call.",
        "Retry in a moment.";
    GuestRefused, "guest_refused", Result,
        "The environment's kernel or guest agent refused the operation; the message contains the reason.",
        "Read the error message; the paths in the message are paths inside the environment.";
    ShuttingDown, "shutting_down", Result,
        "The server is shutting down.",
        "Retry when the server runs again. If it does not suspend its environments, they are lost; list_environments \
         shows those that you still have.";
    UnknownTool, "unknown_tool", Protocol,
        "No tool has this name.",
        "Call tools/list to see the names of the tools.";
    UnknownTask, "unknown_task", Protocol,
        "You have no task with this id: it never existed or has expired.",
        "Call the tool again if you still need the result.";
    StartFailed, "start_failed", Result,
        "The environment's machine failed to start; see the server's log.",
        "Retry the call once; if the call fails again, tell the server's operator.";
    MachineFailed, "machine_failed", Result,
        "The environment's machine sent an invalid or incomplete response, or none in time; see the server's log.",
        "Destroy the environment and create a new one.";
    Internal, "internal", Protocol,
        "The server failed to serve the call; see the server's log.",
        "Retry the call once; if the call fails again, tell the server's operator.";
    Unauthorized, "unauthorized", Http,
        "The bearer token is missing or unknown to this server (status 401).",
        "Send the header \"Authorization: Bearer TOKEN\", with a token from the server's operator.";
    TooManySessions, "too_many_sessions", Http,
        "The server has reached its maximum number of sessions (status 503).",
        "End a session that you no longer need, or retry in a minute.";
    TooManyCallerSessions, "too_many_caller_sessions", Http,
        "You have reached your own maximum number of sessions; sessions of other callers do not count (status 503).",
        "End one of your sessions that you no longer need, or retry in a minute.";
    TooManyConnections, "too_many_connections", Http,
        "The server has reached its maximum number of connections (status 503).",
        "Close connections that you no longer need, or retry in a minute.";
    RequestTooLarge, "request_too_large", Http,
        "The body of the request exceeds the size limit (status 413).",
        "Write a large file in parts: call write_file several times with append.";
    RequestTooSlow, "request_too_slow", Http,
        "The head or the body of the request did not arrive in time, or the server had no free memory for the body in \
         time (status 408).",
        "Retry the request.";
    NotAMessage, "not_a_message", Http,
        "The body of the request is not a single JSON-RPC message, or has too many values (status 400).",
        "Send one JSON object with jsonrpc, method and params; batches are not supported.";
    UnknownSession, "unknown_session", Http,
        "You have no session with this id: it has ended, or the server was restarted (status 404).",
        "To go on, initialize again: send initialize without the header Mcp-Session-Id.";
    UnknownPath, "unknown_path", Http,
        "The server has no page with this path (status 404).",
        "Use the path /mcp.";
    BadRequest, "bad_request", Http,
        "The request lacks a session or a header, or a header is invalid; the message says which (status 400).",
        "Correct the request as the message says, or begin with initialize.";
    Forbidden, "forbidden", Http,
        "The header Host or Origin names a host that this server does not allow (status 403).",
        "Use a host name that the server's operator has allowed.";
    MethodNotAllowed, "method_not_allowed", Http,
        "The endpoint does not take this HTTP method (status 405).",
        "Send calls by POST.";
    NotAcceptable, "not_acceptable", Http,
        "A GET opens an event stream, which the client does not accept (status 406).",
        "Send calls by POST, or accept text/event-stream.";
    UnsupportedMediaType, "unsupported_media_type", Http,
        "The body of the request is not declared as JSON (status 415).",
        "Send the header \"Content-Type: application/json\".";
    RequestRepeated, "request_repeated", Http,
        "A pending request of the session has the same id or progress token (status 400).",
        "Give each request of a session a new id and, if the request has one, a new progress token.";
    IdTooLong, "id_too_long", Http,
        "A request id or a progress token has more than 1024 bytes (status 400).",
        "Use short ids, such as numbers or UUIDs.";
}

/// Returns the page of codes in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = "<!-- Written by ./taskw gen. -->\n# Errors\n\n\
        Every error of a tool, and every rejection listed here, has a message for people, a code for\n\
        programs and a hint with advice. Codes never change, but new codes may be added. Only errors of\n\
        JSON-RPC itself have no code, such as an unknown method or wrong parameters of a method other than\n\
        `tools/call`.\n\n\
        The errors of the first table are tool results with `isError`: their text is the message, followed\n\
        by the hint if the message has no advice, and their `_meta` has an object `waggle/error` with\n\
        `code`, `message` and `hint`. The errors of the other tables are JSON-RPC errors with `code` and\n\
        `hint` in `data`. There are two exceptions: `tasks/get` returns `results_unread` as a JSON-RPC\n\
        error, and `/environments/ID/log` returns an error of the first table as a JSON object that contains\n\
        only the object `error`.\n"
        .to_owned();
    for (place, title) in [
        (Place::Result, "In tool results"),
        (Place::Protocol, "In JSON-RPC errors"),
        (Place::Http, "In HTTP responses, as JSON-RPC errors without an id"),
    ] {
        let _ = write!(page, "\n## {title}\n\n| code | meaning | hint |\n| --- | --- | --- |\n");
        for code in ErrorCode::ALL.iter().filter(|code| code.place() == place) {
            let _ = writeln!(page, "| `{}` | {} | {} |", code.as_str(), code.meaning(), code.hint());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_lowercase() {
        let mut words: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn errors_page_lists_every_code() {
        let kept = include_str!("../../docs/errors.md");
        assert_eq!(kept, page(), "run ./taskw gen");
    }
}
