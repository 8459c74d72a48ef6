// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The words by which programs know errors apart, and what each of them asks for.
//!
//! A code never changes its meaning, and none is ever taken away; the sentences beside them may. `docs/errors.md` is
//! made from this list.

use std::fmt::Write as _;

/// Where a client meets a code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// In a tool's result with `isError`: the caller can do something about it.
    Result,
    /// In a JSON-RPC error: the request was wrong as a whole, or the server failed.
    Protocol,
    /// In the answer of an HTTP request that never reached a tool.
    Http,
}

macro_rules! codes {
    ($($variant:ident, $text:literal, $place:ident, $meaning:literal, $hint:literal;)*) => {
        /// The kind of an error.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ErrorCode {
            /// All of them, in the order of the page.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word itself.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What to do about it, in a sentence for a model.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }

            /// What has happened.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// Where a client meets it.
            #[must_use]
            pub fn place(self) -> Place {
                match self { $(Self::$variant => Place::$place,)* }
            }
        }
    };
}

codes! {
    InvalidArgument, "invalid_argument", Result,
        "An argument is missing, unknown, of the wrong type or out of its range.",
        "Correct the argument that the message names and call again.";
    EnvironmentNotFound, "environment_not_found", Result,
        "No environment of yours has this id.",
        "Call list_environments for those that there are, or create_environment for a new one.";
    EnvironmentDestroyed, "environment_destroyed", Result,
        "The environment is gone: destroyed on request, for having idled, or under the call.",
        "Call create_environment for a new one; its files have to be made again.";
    EnvironmentNotRunning, "environment_not_running", Result,
        "The environment is there but takes no calls: it is being made or ended, or its machine has failed.",
        "Call list_environments to see its status; destroy one with the status error and create a new one.";
    EnvironmentBusy, "environment_busy", Result,
        "As many calls run in the environment as it can take.",
        "Call again when one of them has ended.";
    CapacityReached, "capacity_reached", Result,
        "The server has as many environments as it may have.",
        "Destroy an environment that you no longer need, or try again later.";
    TooManyCalls, "too_many_calls", Result,
        "As many calls run at once as the server, or this caller, may have.",
        "Call again when others have ended.";
    ResultsUnread, "results_unread", Result,
        "Results of other calls that have not been read yet take all the room that there is.",
        "Read the answers that are open, ask for less at a time, or call again a little later.";
    RuntimeUnavailable, "runtime_unavailable", Result,
        "The environment's image lacks the interpreter or the package manager.",
        "Use another language, or create an environment of another runtime.";
    TimedOut, "timed_out", Result,
        "The command ran out of its time, and everything that it had started was killed.",
        "Ask execute for more with timeout_seconds, or start the work in the background and look at its log with later calls; \
         install fewer packages at a time.";
    Cancelled, "cancelled", Result,
        "The caller cancelled the call, and everything that it had started was killed.",
        "Call again if the result is wanted after all.";
    NotFound, "not_found", Result,
        "There is no file or folder at the path.",
        "Call list_files on the folder above it to see what is there.";
    IsADirectory, "is_a_directory", Result,
        "The path is a folder where a file is needed.",
        "Call list_files for what is in it.";
    NotADirectory, "not_a_directory", Result,
        "The path, or a part of it, is a file where a folder is needed.",
        "Call list_files on the folder above it to see what is there.";
    NotARegularFile, "not_a_regular_file", Result,
        "The path is a device, a socket or a pipe.",
        "Use execute for anything but files and folders.";
    PermissionDenied, "permission_denied", Result,
        "The user sandbox may not do this with the path.",
        "Use a path below /home/sandbox or /tmp.";
    TooLarge, "too_large", Result,
        "The file is larger than one call can carry.",
        "Read it in parts, with offset and limit.";
    NoSpace, "no_space", Result,
        "The environment's disk is full.",
        "Remove what is no longer needed with execute.";
    ReadOnly, "read_only", Result,
        "The path is in a file system that nothing can be written to.",
        "Use a path below /home/sandbox or /tmp.";
    InvalidPath, "invalid_path", Result,
        "The environment's kernel takes no such path.",
        "Give an absolute path, or one relative to /home/sandbox.";
    GuestBusy, "guest_busy", Result,
        "The environment has too much to do to begin the call.",
        "Call again in a moment.";
    GuestRefused, "guest_refused", Result,
        "The environment could not do it, for the reason that the message gives.",
        "Read the message; what it names is inside the environment.";
    ShuttingDown, "shutting_down", Result,
        "The server is about to end.",
        "Call again when it is back; its environments will be gone.";
    UnknownTool, "unknown_tool", Protocol,
        "There is no tool of this name.",
        "Call tools/list for the names.";
    UnknownTask, "unknown_task", Protocol,
        "No task of yours has this id: it never was, or its time is over.",
        "Call the tool again if its result is still wanted.";
    StartFailed, "start_failed", Protocol,
        "The environment's machine could not be started; the server's log has more.",
        "Try once more, and tell the server's operator if it fails again.";
    MachineFailed, "machine_failed", Protocol,
        "The environment's machine answered in a way that makes no sense; the server's log has more.",
        "Destroy the environment and create a new one.";
    Internal, "internal", Protocol,
        "The server failed; its log has more.",
        "Try once more, and tell the server's operator if it fails again.";
    Unauthorized, "unauthorized", Http,
        "The request has no bearer token that this server knows (status 401).",
        "Send the header Authorization: Bearer with a token that the server's operator gave you.";
    TooManySessions, "too_many_sessions", Http,
        "There is no room for another session (status 503).",
        "End a session that is no longer needed, or try again in a minute.";
    TooManyConnections, "too_many_connections", Http,
        "There are as many connections as the server takes (status 503).",
        "Close connections that are no longer needed, or try again in a minute.";
    RequestTooLarge, "request_too_large", Http,
        "The body of the request is larger than any call needs (status 413).",
        "Write large files in parts, with append.";
    RequestTooSlow, "request_too_slow", Http,
        "The body of the request did not arrive in time, or not while there was room for it (status 408).",
        "Send it again.";
    NotAMessage, "not_a_message", Http,
        "The body of the request is not one JSON-RPC message, or one of very many values (status 400).",
        "Send one JSON object with jsonrpc, method and params; batches are not taken.";
    RequestRepeated, "request_repeated", Http,
        "A request of the session that is not over yet has the same id or progress token (status 400).",
        "Give each request of a session an id of its own.";
}

/// The page of codes, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = "<!-- Written by ./taskw gen. -->\n# Errors\n\n\
        Each error of a tool, and each refusal listed here, has a sentence for people, a code for programs and a hint that \
        says what to do. Codes do not change; new ones may come. What breaks HTTP or JSON-RPC itself has none: a wrong Host \
        or Origin (status 403), a session that is not known (404), a method that is not known.\n\n\
        What the caller can mend is a tool result with `isError`: the sentence is its text, and its structured content has \
        an object `error` with `code`, `message` and `hint`. What the caller cannot is a JSON-RPC error with `code` and \
        `hint` in its `data`; so is `results_unread` from `tasks/get`. `/environments/ID/log` answers with the object \
        `error` alone.\n"
        .to_owned();
    for (place, title) in [
        (Place::Result, "In tool results"),
        (Place::Protocol, "In JSON-RPC errors"),
        (Place::Http, "In answers of the HTTP server, as JSON-RPC errors without an id"),
    ] {
        let _ = write!(page, "\n## {title}\n\n| code | means | hint |\n| --- | --- | --- |\n");
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
    fn codes_are_different_words() {
        let mut words: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn the_page_of_errors_lists_every_code() {
        let kept = include_str!("../../docs/errors.md");
        assert_eq!(kept, page(), "run ./taskw gen");
    }
}
