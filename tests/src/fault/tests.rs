use super::*;
use crate::wait;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than an answer takes that comes at all.
const NOTHING: Duration = Duration::from_millis(300);

/// A server that sends back what it gets, and a proxy in front of it.
async fn echo() -> Result<Proxy> {
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
    Proxy::start(target).await
}

async fn answers(stream: &mut TcpStream, bytes: usize) -> Result<bool> {
    stream.write_all(&vec![7; bytes]).await?;
    let mut back = vec![0; bytes];
    Ok(wait::at_most("answer", PATIENCE, stream.read_exact(&mut back)).await?.is_ok())
}

/// Whether the other side has ended the connection; `None` when nothing is heard of it.
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
async fn a_refusing_network_keeps_what_is_there_and_listens_again() -> Result<()> {
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
