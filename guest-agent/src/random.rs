// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Random text and ids. Each call asks the kernel, so that nothing random outlives the host's welcome.

use std::io;

/// Returns twelve unguessable hexadecimal digits.
pub(crate) fn random_hex() -> io::Result<String> {
    Ok(hex(&random::<6>()?))
}

/// Returns a random UUID of version 4.
pub(crate) fn random_uuid() -> io::Result<[u8; 16]> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

/// Returns two hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids_of_version_4() {
        let (one, other) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, other);
        assert!([one, other].iter().all(|id| id[6] >> 4 == 4 && id[8] >> 6 == 0b10));
    }
}
