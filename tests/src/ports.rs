//! Free ports on loopback for processes that cannot choose one themselves.

use anyhow::{Result, bail};
use std::{
    io,
    net::Ipv4Addr,
    sync::atomic::{AtomicU16, Ordering},
};
use tokio::net::TcpSocket;

/// Below the range that Linux uses for outgoing connections, so that none of those can take the port meanwhile.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
/// The distance between the first ports of two process ids.
const STRIDE: u32 = 61;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port on which nobody listens and which this process has not given out before.
///
/// # Errors
/// None is free.
pub fn free() -> Result<u16> {
    let start = std::process::id().wrapping_mul(STRIDE);
    for _ in 0..COUNT {
        let offset = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)).wrapping_add(start) % u32::from(COUNT);
        let port = FIRST + offset as u16;
        if probe(port).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1)
}

/// Binds a port without listening: a child that is being started has a copy of the socket, which must not block others.
fn probe(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_is_not_free_while_somebody_listens_and_a_probe_blocks_nobody() {
        let port = free().unwrap();
        let probe_that_stays = probe(port).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(probe(port).is_err());
        drop((listener, probe_that_stays));
    }
}
