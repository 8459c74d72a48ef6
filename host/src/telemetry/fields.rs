// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The fields of a log line, each safe to show and of limited length.
//!
//! Fields contain text of guests, images, registries and clients. Whichever code logs a text, it passes here, so no
//! text can begin a line of its own, control a terminal or fill the disk with one line.

use std::{
    error::Error,
    fmt::{self, Debug},
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};
use waggle_shared::{causes::chain, printable};

/// Maximum bytes of a field: enough for the last lines of a console.
const FIELD_BYTES_MAX: usize = 16_000;

/// The name of the field that is shown without its name.
const MESSAGE: &str = "message";

#[derive(Clone, Copy, Debug)]
pub(super) struct PrintableFields;

impl<'writer> FormatFields<'writer> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, written: Ok(()) };
        fields.record(&mut line);
        line.written
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    written: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        let value = printable::text(value, FIELD_BYTES_MAX);
        let gap = if std::mem::take(&mut self.is_empty) { "" } else { " " };
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        let written = match name {
            MESSAGE => write!(self.writer, "{gap}{value}"),
            // A terminal shows the name in italics and the equals sign dimmed, as in other programs.
            _ if self.writer.has_ansi_escapes() => {
                write!(self.writer, "{gap}\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
            }
            _ => write!(self.writer, "{gap}{name}={value}"),
        };
        self.written = self.written.and(written);
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE { self.write(field, value) } else { self.record_debug(field, &value) }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write(field, &chain(value));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};
    use waggle_shared::mutex::lock;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(work: impl FnOnce()) -> String {
        let log = Log::default();
        let lines = tracing_subscriber::fmt::layer().fmt_fields(PrintableFields).with_writer(log.clone());
        let subscriber = tracing_subscriber::registry().with(lines.without_time().with_ansi(false));
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(lock(&log.0).clone()).unwrap()
    }

    #[test]
    fn fields_keep_their_form() {
        let log = logged(|| {
            let fault = io::Error::other("no bees");
            let span = tracing::info_span!("hive", id = 7).entered();
            let (text, count) = ("a \"b\"", 1);
            tracing::error!(error = &fault as &dyn Error, text, shown = %"c d", count, r#type = 2, "hum");
            drop(span);
        });
        let target = module_path!();
        let expected = "hum error=no bees text=\"a \\\"b\\\"\" shown=c d count=1 type=2\n";
        assert_eq!(log, format!("ERROR hive{{id=7}}: {target}: {expected}"));
    }

    #[test]
    fn no_field_begins_a_line_and_each_is_limited() {
        const FORGED: &str = "linux\n2026-01-01T00:00:00Z ERROR waggle: forged\x1b[2J\u{202e}";
        let log = logged(|| {
            let fault = io::Error::other(FORGED);
            let _span = tracing::info_span!("hive", name = %FORGED).entered();
            tracing::error!(error = &fault as &dyn Error, text = FORGED, shown = %FORGED, debug = ?FORGED, "{FORGED}");
            tracing::error!(long = %"A".repeat(1 << 20));
        });
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(!log.contains(['\x1b', '\u{202e}']), "{log}");
        assert!(lines[1].len() < FIELD_BYTES_MAX + 500);
    }
}
