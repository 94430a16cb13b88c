//! A TCP proxy that simulates network faults between the relay and either side.
//!
//! A connection that went silent stays silent when the network is good again, as after a lost route; later connections work.

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
/// While slow, this many bytes pass in each direction and beat: 64 KiB per second.
const SLOW_CHUNK: usize = 1311;
const SLOW_BEAT: Duration = Duration::from_millis(20);

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Good,
    /// Connections stay open and nothing passes.
    Silent,
    /// Bytes trickle.
    Slow,
    /// New connections are refused; open ones stay.
    Refused,
}

/// The proxy. It ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct TcpProxy {
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

impl TcpProxy {
    /// Starts one in front of `target`.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        // A port of our own range: no outgoing connection can take it while the listener is closed.
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

    /// The number of connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Changes the network.
    pub fn set(&self, network: Network) {
        self.state.send_modify(|state| state.network = network);
    }

    /// Cuts all open connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for TcpProxy {
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

/// Joins a client with the target until either ends or the connection is cut.
async fn join(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    // A target that is down looks like a connection that closes at once.
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Without nodelay small frames wait for each other. A closed connection may ignore it.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let up = pump(from_client, to_server, state.clone());
    let down = pump(from_server, to_client, state.clone());
    tokio::select! {
        // Returning drops both ends.
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
                // On a silent connection the other side does not notice this end.
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
    // This direction has ended. The other may go on.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// Longer than any answer takes.
    const NOTHING: Duration = Duration::from_millis(300);

    /// An echo server and a proxy in front of it.
    async fn echo() -> Result<TcpProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let target = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        TcpProxy::start(target).await
    }

    async fn answers(stream: &mut TcpStream, bytes: usize) -> Result<bool> {
        stream.write_all(&vec![7; bytes]).await?;
        let mut back = vec![0; bytes];
        Ok(wait::at_most("answer", PATIENCE, stream.read_exact(&mut back)).await?.is_ok())
    }

    /// Whether the other side has ended the connection; `None` if nothing arrives.
    async fn ended(stream: &mut TcpStream) -> Option<bool> {
        let heard = tokio::time::timeout(NOTHING, stream.read(&mut [0; 1])).await;
        heard.ok().map(|read| !matches!(read, Ok(1)))
    }

    #[tokio::test]
    async fn a_cut_ends_connections_that_are_there_and_no_later_one() -> Result<()> {
        let proxy = echo().await?;
        let mut before = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut before, 1).await?);
        proxy.cut();
        assert_eq!(wait::at_most("end", PATIENCE, ended(&mut before)).await?, Some(true));
        let mut after = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut after, 1).await?);
        Ok(())
    }

    #[tokio::test]
    async fn a_half_open_connection_stays_silent_when_the_network_is_good_again() -> Result<()> {
        let proxy = echo().await?;
        let mut before = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut before, 1).await?);
        proxy.set(Network::Silent);
        before.write_all(&[7]).await?;
        assert_eq!(ended(&mut before).await, None, "neither an answer nor an end");
        proxy.set(Network::Good);
        before.write_all(&[7]).await?;
        assert_eq!(ended(&mut before).await, None, "its route is lost");
        let mut after = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut after, 1).await?);
        Ok(())
    }

    #[tokio::test]
    async fn a_slow_network_brings_every_byte_late() -> Result<()> {
        let proxy = echo().await?;
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut stream, 1).await?);
        proxy.set(Network::Slow);
        let started = Instant::now();
        assert!(answers(&mut stream, 10 * SLOW_CHUNK).await?);
        assert!(started.elapsed() >= 10 * SLOW_BEAT, "{:?}", started.elapsed());
        Ok(())
    }

    #[tokio::test]
    async fn a_refusing_network_keeps_open_connections_and_listens_again() -> Result<()> {
        let proxy = echo().await?;
        let mut before = TcpStream::connect(proxy.addr()).await?;
        assert!(answers(&mut before, 1).await?);
        proxy.set(Network::Refused);
        let refused = async || TcpStream::connect(proxy.addr()).await.err();
        wait::until("refusal", PATIENCE, refused).await?;
        assert!(answers(&mut before, 1).await?);
        proxy.set(Network::Good);
        let open = async || TcpStream::connect(proxy.addr()).await.ok();
        let mut after = wait::until("connection", PATIENCE, open).await?;
        assert!(answers(&mut after, 1).await?);
        Ok(())
    }
}
