// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Chooses the back end that runs guests, once when the server starts.
//!
//! The order of preference is libkrun (requires KVM and the firmware), QEMU with KVM, QEMU with software emulation. The
//! fork `msb_krun` is used only if the operator chooses it.

use std::{ffi::OsStr, fmt, path::Path};

use clap::ValueEnum;
use tokio::task::{JoinError, spawn_blocking};
use waggle_protocol::boot::Transport;
use waggle_shared::causes::chain;

use super::{
    krun::{Firmware, FirmwareFault},
    probe::{self, Kvm},
    runner_messages::{Accelerator, Library},
    tsc,
};

/// The back end that the operator configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum WantedBackend {
    /// The best back end that works on this host
    Auto,
    /// QEMU, with KVM if KVM works
    Qemu,
    /// libkrun, or an error if libkrun does not work
    Krun,
    /// `msb_krun`, a fork of libkrun, or an error if it does not work
    Msb,
}

/// The reason why the configured back end is not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendFault {
    /// This build does not contain `msb_krun`.
    #[error(
        "this program was built without msb_krun; build it with `cargo build --release -p waggle --features msb`, or \
         set WAGGLE_BACKEND=krun"
    )]
    NotBuilt,
    /// libkrun or its fork was configured, but KVM does not work.
    #[error("{library} requires KVM; {kvm}. Set WAGGLE_BACKEND=auto to use a back end that works here")]
    NoKvm { library: &'static str, kvm: String },
    /// libkrun or its fork was configured, but its firmware was not found or does not work.
    #[error("failed to find libkrunfw, which contains the guests' kernel")]
    NoFirmware { source: FirmwareFault },
    /// The measuring task panicked.
    #[error("failed to measure the clock's frequency")]
    Clock { source: JoinError },
}

/// The chosen back end and the reason for the choice. `Display` shows both to an operator.
#[derive(Clone, Debug)]
pub struct Backend {
    chosen: Chosen,
    why: String,
}

#[derive(Clone, Debug)]
pub(super) enum Chosen {
    Krun(Library, Firmware),
    Qemu(Accelerator),
}

impl Backend {
    /// Probes KVM, and looks for the firmware if KVM works. Takes a second, or a little more on a busy machine.
    pub(super) async fn find(
        wanted: WantedBackend,
        firmware: Option<&Path>,
        firmware_dir: &Path,
        runner: &OsStr,
    ) -> Result<Self, BackendFault> {
        let kvm = probe::probe(runner).await;
        let firmware = match &kvm {
            Kvm::Usable => Firmware::find(firmware, firmware_dir, runner).await,
            Kvm::Unusable(_) => Err(FirmwareFault::Missing),
        };
        let tsc_khz = spawn_blocking(tsc::measure_khz).await.map_err(|source| BackendFault::Clock { source })?;
        Self::choose(wanted, &kvm, firmware, tsc_khz)
    }

    fn choose(
        wanted: WantedBackend,
        kvm: &Kvm,
        firmware: Result<Firmware, FirmwareFault>,
        tsc_khz: u32,
    ) -> Result<Self, BackendFault> {
        let emulation = || Self { chosen: Chosen::Qemu(Accelerator::Emulation { tsc_khz }), why: kvm.to_string() };
        let with_kvm = |why: String| Self { chosen: Chosen::Qemu(Accelerator::Kvm), why };
        let krun = |library, firmware: Firmware| {
            let why = format!("{kvm}; the guests' kernel is in {}", firmware.path.display());
            Self { chosen: Chosen::Krun(library, firmware), why }
        };
        let library = match wanted {
            WantedBackend::Msb if !cfg!(feature = "msb") => return Err(BackendFault::NotBuilt),
            WantedBackend::Msb => Library::Msb,
            WantedBackend::Auto | WantedBackend::Krun | WantedBackend::Qemu => Library::Libkrun,
        };
        Ok(match (wanted, kvm, firmware) {
            (WantedBackend::Krun | WantedBackend::Msb, Kvm::Unusable(_), _) => {
                return Err(BackendFault::NoKvm { library: library.name(), kvm: kvm.to_string() });
            }
            (WantedBackend::Krun | WantedBackend::Msb, Kvm::Usable, Err(source)) => {
                return Err(BackendFault::NoFirmware { source });
            }
            (WantedBackend::Krun | WantedBackend::Msb | WantedBackend::Auto, Kvm::Usable, Ok(firmware)) => {
                krun(library, firmware)
            }
            (WantedBackend::Auto, Kvm::Usable, Err(fault)) => with_kvm(format!("no libkrun: {}", chain(&fault))),
            (WantedBackend::Qemu, Kvm::Usable, _) => with_kvm("chosen by WAGGLE_BACKEND".to_owned()),
            (WantedBackend::Auto | WantedBackend::Qemu, Kvm::Unusable(_), _) => emulation(),
        })
    }

    /// The device that carries the links between guest and host.
    pub(super) fn transport(&self) -> Transport {
        match self.chosen {
            Chosen::Krun(..) => Transport::Vsock,
            Chosen::Qemu(_) => Transport::Serial,
        }
    }

    pub(super) fn chosen(&self) -> &Chosen {
        &self.chosen
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.chosen {
            Chosen::Krun(library, _) => library.name(),
            Chosen::Qemu(Accelerator::Kvm) => "qemu with KVM",
            Chosen::Qemu(Accelerator::Emulation { .. }) => "qemu, software emulation",
        };
        let links = match self.transport() {
            Transport::Vsock => "virtio-vsock, a device of the library itself",
            Transport::Serial => "virtio-serial, as QEMU's vsock device cannot be saved and needs a second program",
        };
        write!(f, "{name} ({}); links over {links}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;

    fn chosen(wanted: WantedBackend, kvm: &Kvm, has_firmware: bool) -> String {
        let found = Firmware { path: "/lib/libkrunfw.so.5".into(), unpacked: None };
        let firmware = if has_firmware { Ok(found) } else { Err(FirmwareFault::Missing) };
        match Backend::choose(wanted, kvm, firmware, KHZ) {
            Ok(backend) => backend.to_string(),
            Err(fault) => chain(&fault),
        }
    }

    #[test]
    fn auto_chooses_the_best_working_back_end() {
        let works = |has_firmware| chosen(WantedBackend::Auto, &Kvm::Usable, has_firmware);
        let krun = "libkrun (KVM works; the guests' kernel is in /lib/libkrunfw.so.5); links over virtio-vsock";
        assert!(works(true).starts_with(krun), "{}", works(true));
        assert!(works(false).starts_with("qemu with KVM (no libkrun: libkrunfw.so.5 not found"), "{}", works(false));
        let broken = Kvm::Unusable("sse2".into());
        for wanted in [WantedBackend::Auto, WantedBackend::Qemu] {
            let emulation = chosen(wanted, &broken, true);
            let expected = "qemu, software emulation (KVM unusable: sse2); links over virtio-serial";
            assert!(emulation.starts_with(expected), "{emulation}");
        }
    }

    #[test]
    fn configured_back_end_is_never_replaced() {
        let qemu = chosen(WantedBackend::Qemu, &Kvm::Usable, true);
        assert!(qemu.starts_with("qemu with KVM (chosen by WAGGLE_BACKEND); links over virtio-serial"), "{qemu}");
        let refused = chosen(WantedBackend::Krun, &Kvm::Unusable("sse2".into()), true);
        assert!(refused.starts_with("libkrun requires KVM; KVM unusable: sse2"), "{refused}");
        let refused = chosen(WantedBackend::Krun, &Kvm::Usable, false);
        assert!(refused.contains("./taskw firmware") && refused.contains("WAGGLE_FIRMWARE"), "{refused}");
        let msb = chosen(WantedBackend::Msb, &Kvm::Usable, true);
        let expected =
            if cfg!(feature = "msb") { "msb_krun (KVM works; " } else { "this program was built without msb_krun" };
        assert!(msb.starts_with(expected), "{msb}");
    }
}
