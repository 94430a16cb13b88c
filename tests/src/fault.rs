//! A TCP proxy that can be told to break: the network between the relay and either side.
//!
//! Refuses to repair: a connection that went silent stays silent when the fault is lifted, as after a lost route; only
//! connections made later are good again.

use crate::ports;
use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

const CHUNK: usize = 64 * 1024;
/// While slow, this many bytes pass in each direction and beat: 64 KiB a second.
const SLOW_CHUNK: usize = 1311;
const SLOW_BEAT: Duration = Duration::from_millis(20);

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Good,
    /// Connections stay, nothing passes, and nobody is told.
    Silent,
    /// Bytes trickle.
    Slow,
    /// Connections are refused; those that are there stay.
    Refused,
}

/// The proxy. It ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    network: Network,
    cuts: u64,
}

impl Proxy {
    /// Starts one in front of `target`.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        // A port of our own range: while it refuses, no outgoing connection can take it.
        let listener = TcpListener::bind(("127.0.0.1", ports::free()?)).await?;
        let addr = listener.local_addr()?;
        let (state, watched) = watch::channel(State { network: Network::Good, cuts: 0 });
        let accepted = Arc::default();
        let task = tokio::spawn(accept(listener, addr, target, watched, Arc::clone(&accepted)));
        Ok(Self { addr, state, accepted, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it has taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Changes the network.
    pub fn set(&self, network: Network) {
        self.state.send_modify(|state| state.network = network);
    }

    /// Cuts every connection that is there now.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    addr: SocketAddr,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
    count: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refused = state.borrow_and_update().network == Network::Refused;
        match (&listener, refused) {
            (Some(_), true) => listener = None,
            (None, false) => listener = TcpListener::bind(addr).await.ok(),
            _ => {}
        }
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None if refused => std::future::pending().await,
                None => {
                    sleep(SLOW_BEAT).await;
                    Err(std::io::ErrorKind::AddrInUse.into())
                }
            }
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            accepted = next => if let Ok((stream, _)) = accepted {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(join(stream, target, state.clone()));
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Joins one client with the target until either ends or is cut.
async fn join(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    // A target that is down looks like a connection that closes at once.
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Without it small frames wait for each other; one that has gone already does not mind.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let up = pump(from_client, to_server, state.clone());
    let down = pump(from_server, to_client, state.clone());
    tokio::select! {
        // Whoever is asked to cut drops both ends.
        _ = state.wait_for(|state| state.cuts != cuts) => {}
        _ = async { tokio::join!(up, down) } => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; CHUNK];
    let mut silent = false;
    loop {
        let most = if state.borrow().network == Network::Slow { SLOW_CHUNK } else { CHUNK };
        let count = tokio::select! {
            read = from.read(&mut buffer[..most]) => match read {
                Ok(count) if count > 0 => count,
                // A silent connection does not tell the other side that this one has gone.
                _ if silent => return std::future::pending().await,
                _ => break,
            },
            changed = state.changed() => {
                silent |= changed.is_ok() && state.borrow().network == Network::Silent;
                if changed.is_err() { return }
                continue;
            }
        };
        let network = state.borrow().network;
        silent |= network == Network::Silent;
        if silent {
            continue;
        }
        if network == Network::Slow {
            sleep(SLOW_BEAT).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    // The end of one direction. The other may still have something to say.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests;
