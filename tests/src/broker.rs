//! A private RabbitMQ node: its own name, ports, data folder, cookie and port mapper, all on loopback. It never touches a
//! broker that already runs on this machine.

use crate::{
    paths::RunDir,
    ports,
    process::{Process, Spec, output},
    wait,
};
use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::net::TcpStream;

/// Not Debian's wrapper, which requires the system's user and folders.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(60);
const PERSISTENT: u8 = 2;

/// Each run of `rabbitmqctl` has a log of its own.
static CONTROLS: AtomicU32 = AtomicU32::new(0);

/// The node.
#[derive(Debug)]
pub struct Broker {
    name: String,
    folder: PathBuf,
    port: u16,
    distribution_port: u16,
    mapper_port: u16,
    _mapper: Process,
    node: Process,
}

/// A channel that publishes persistent messages and waits until the broker has them.
#[derive(Debug)]
pub struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Broker {
    /// Starts a node with an empty data folder.
    ///
    /// # Errors
    /// RabbitMQ is missing or does not come up.
    pub async fn start(run: &RunDir, name: &str) -> Result<Self> {
        Self::start_with(run, name, "").await
    }

    #[cfg(feature = "credentials")]
    /// Starts a node that also listens with TLS, on the port given back, and asks clients for a certificate of `authority`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_tls(run: &RunDir, name: &str, authority: &crate::tls::Authority) -> Result<(Self, u16)> {
        let (port, (certificate, key)) = (ports::free()?, authority.sign(name)?);
        let files = [("cacertfile", authority.file()), ("certfile", certificate), ("keyfile", key)];
        let mut settings = format!("listeners.ssl.1 = 127.0.0.1:{port}\n");
        for (option, file) in files {
            settings.push_str(&format!("ssl_options.{option} = {}\n", file.display()));
        }
        settings.push_str("ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n");
        Ok((Self::start_with(run, name, &settings).await?, port))
    }

    /// Starts a node with more lines in its configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(run: &RunDir, name: &str, settings: &str) -> Result<Self> {
        let folder = run.folder(&format!("{name}-data"))?;
        let (port, distribution_port, mapper_port) = (ports::free()?, ports::free()?, ports::free()?);
        // RabbitMQ would start a port mapper that outlives it. Ours is a child like all others.
        let mapper = Spec::new(&format!("{name}-epmd"), "epmd")
            .args(["-address", "127.0.0.1", "-port", &mapper_port.to_string()])
            .start(run)?;
        mapper.ready(START, async || listens(mapper_port).await).await?;
        fs::write(
            folder.join("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = 127.0.0.1:{port}\nlog.console = true\nlog.console.level = info\nlog.file = false\n\
                 disk_free_limit.absolute = 1MB\n{settings}"
            ),
        )?;
        fs::write(folder.join("enabled_plugins"), "[].\n")?;
        fs::write(folder.join("env.conf"), "")?;
        let spec = spec(name, &folder, distribution_port, mapper_port);
        let (name, node) = (name.to_string(), spec.start(run)?);
        let broker = Self { name, folder, port, distribution_port, mapper_port, _mapper: mapper, node };
        broker.ready().await?;
        Ok(broker)
    }

    /// Stops the node with SIGTERM; its data stays.
    ///
    /// # Errors
    /// It does not stop.
    pub async fn stop(&self) -> Result<()> {
        self.node.terminate(STOP).await.map(drop)
    }

    /// Ends the node with SIGKILL; its data stays.
    pub async fn kill(&self) {
        self.node.kill().await;
    }

    /// Runs `rabbitmqctl` on this node; gives what it printed.
    ///
    /// # Errors
    /// It fails.
    pub async fn control(&self, run: &RunDir, args: &[&str]) -> Result<String> {
        let number = CONTROLS.fetch_add(1, Ordering::Relaxed);
        let spec = at_node(Spec::new(&format!("{}-control-{number}", self.name), CONTROL), &self.name, &self.folder)
            .env("ERL_EPMD_PORT", self.mapper_port.to_string())
            .args(["--quiet", "--node", &format!("{}@localhost", self.name)])
            .args(args);
        let (status, text) = output(run, spec, STOP).await?;
        ensure!(status.success(), "rabbitmqctl {args:?} of {}: {text}", self.name);
        Ok(text)
    }

    /// The number of messages in a queue, unacknowledged ones included.
    ///
    /// # Errors
    /// The node does not answer, or the queue is not there.
    pub async fn depth(&self, run: &RunDir, queue: &str) -> Result<u64> {
        let list = self.control(run, &["list_queues", "--no-table-headers", "name", "messages"]).await?;
        let mut rows = list.lines().filter_map(|line| line.rsplit_once(char::is_whitespace));
        let row = rows.find(|(name, _)| name.trim() == queue);
        row.and_then(|(_, count)| count.parse().ok()).with_context(|| format!("no queue {queue}: {list}"))
    }

    /// Starts it again with its data.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self, run: &RunDir) -> Result<()> {
        ensure!(!self.node.is_running(), "{} still runs", self.name);
        self.node = spec(&self.name, &self.folder, self.distribution_port, self.mapper_port).start(run)?;
        self.ready().await
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The address as an AMQP URL.
    pub fn url(&self) -> String {
        Self::url_at(self.addr())
    }

    /// The AMQP URL of a broker, or of a proxy in front of one.
    pub fn url_at(addr: SocketAddr) -> String {
        format!("amqp://guest:guest@{addr}/%2f")
    }

    /// The node's process.
    pub fn process(&self) -> &Process {
        &self.node
    }

    /// Opens a channel for publishing.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn publisher(&self) -> Result<Publisher> {
        Publisher::connect(&self.url()).await
    }

    async fn ready(&self) -> Result<()> {
        let answers = async || Connection::connect(&self.url(), ConnectionProperties::default()).await.is_ok();
        // A client that connects too early waits long for its answer: first the port, then the protocol.
        self.node.ready(START, async || listens(self.port).await).await?;
        self.node.ready(START, answers).await
    }
}

/// Points a program to a node: its folder with the cookie, and its settings instead of the system's.
fn at_node(spec: Spec, name: &str, folder: &Path) -> Spec {
    spec.folder(folder)
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", format!("{name}@localhost"))
        .env("RABBITMQ_CONF_ENV_FILE", folder.join("env.conf"))
}

fn spec(name: &str, folder: &Path, distribution_port: u16, mapper_port: u16) -> Spec {
    at_node(Spec::new(name, SERVER), name, folder)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", mapper_port.to_string())
        .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_LOGS", "-")
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        // Otherwise a shell script stays as the parent, and the broker outlives it when it is killed. It switches off
        // `-noinput`, which is added below.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        )
}

/// How the backend publishes a task.
fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT).with_content_type("application/json".into())
}

async fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

impl Publisher {
    /// Connects to a broker's address.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.context("RabbitMQ")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Creates a durable queue.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn declare(&self, queue: &str) -> Result<()> {
        self.declare_with(queue, &[]).await
    }

    /// Creates a durable queue with arguments that are texts.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn declare_with(&self, queue: &str, arguments: &[(&str, &str)]) -> Result<()> {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table).await?;
        Ok(())
    }

    /// Creates a durable exchange, `direct`, `fanout` or the like.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn declare_exchange(&self, exchange: &str, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        self.channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await?;
        Ok(())
    }

    /// Binds a queue to an exchange with a routing key.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await?;
        Ok(())
    }

    /// Removes a binding.
    ///
    /// # Errors
    /// The broker answers with an error.
    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        self.channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await?;
        Ok(())
    }

    /// Publishes one message.
    ///
    /// # Errors
    /// The broker does not confirm it.
    pub async fn publish(&self, queue: &str, body: &[u8]) -> Result<()> {
        self.publish_with(queue, [(body, persistent())]).await
    }

    /// Publishes messages one after the other, then waits for all confirmations.
    ///
    /// # Errors
    /// The broker does not confirm one of them.
    pub async fn publish_all<'a>(&self, queue: &str, bodies: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        self.publish_with(queue, bodies.into_iter().map(|body| (body, persistent()))).await
    }

    /// As [`publish_all`](Self::publish_all), each message with its own properties.
    ///
    /// # Errors
    /// The broker does not confirm one of them.
    pub async fn publish_with<'a>(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = (&'a [u8], BasicProperties)>,
    ) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let mut sent = Vec::new();
        for (body, properties) in messages {
            sent.push(self.channel.basic_publish("".into(), queue.into(), options, body, properties).await?);
        }
        for confirmation in sent {
            let confirmation = confirmation.await?;
            ensure!(matches!(confirmation, Confirmation::Ack(None)), "queue {queue} did not take a message");
        }
        Ok(())
    }

    /// The number of ready messages in a queue.
    ///
    /// # Errors
    /// The queue is not there.
    pub async fn ready_count(&self, queue: &str) -> Result<u32> {
        let options = QueueDeclareOptions::durable().passive();
        Ok(self.channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
    }

    /// Takes the next message of a queue, acknowledged at once.
    ///
    /// # Errors
    /// None came in time.
    pub async fn take(&self, queue: &str, within: Duration) -> Result<BasicGetMessage> {
        let get = async || {
            let options = BasicGetOptions { no_ack: true };
            self.channel.basic_get(queue.into(), options).await.ok().flatten()
        };
        wait::until(&format!("message in {queue}"), within, get).await
    }
}
