//! A reverse proxy that keeps which requests went by, and can hold reads back until others have come.

use crate::proxy::{Proxy, Target};
use anyhow::Result;
use axum::http::Method;
use std::sync::Arc;
use tokio::sync::watch;

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Counting {
    proxy: Proxy,
    seen: Arc<watch::Sender<Vec<(Method, String)>>>,
}

impl Counting {
    /// Starts it in front of `target`. A GET of a path waits until that path has had `heads` HEADs.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str, heads: usize) -> Result<Self> {
        let (target, seen) = (Arc::new(Target::new(target)?), Arc::new(watch::Sender::default()));
        let shared = seen.clone();
        let proxy = Proxy::start(move |request| {
            let (target, seen) = (target.clone(), shared.clone());
            async move {
                let (method, path) = (request.method.clone(), request.uri.path().to_string());
                seen.send_modify(|seen: &mut Vec<_>| seen.push((method.clone(), path.clone())));
                if method == Method::GET {
                    let enough = |seen: &Vec<(Method, String)>| {
                        seen.iter().filter(|(method, at)| method == Method::HEAD && *at == path).count() >= heads
                    };
                    seen.subscribe().wait_for(enough).await?;
                }
                target.pass(request).await
            }
        });
        Ok(Self { proxy: proxy.await?, seen })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// How many requests of this method went to paths that end so.
    pub fn count(&self, method: &Method, ending: &str) -> usize {
        self.seen.borrow().iter().filter(|(seen, path)| seen == method && path.ends_with(ending)).count()
    }
}
