//! Weights in the order of the products, kept by name.

use super::{Filters, Instructions, Matrix};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Rounds weights, and finds those that are in use. After a change of LoRAs, unchanged layers find theirs here. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Packed {
    /// Tensors of several networks have the same names.
    network: &'static str,
    pub(in crate::ops::cpu) instructions: Instructions,
    matrices: InUse<Matrix>,
    filters: InUse<Filters>,
}

/// By network and name of the tensor.
type InUse<T> = Arc<Mutex<HashMap<(&'static str, String), Weak<T>>>>;

impl Packed {
    pub(crate) fn new(instructions: Instructions) -> Self {
        Self { network: "", instructions, matrices: Arc::default(), filters: Arc::default() }
    }

    /// For the tensors of that network.
    pub(crate) fn of(&self, network: &'static str) -> Self {
        Self { network, ..self.clone() }
    }

    pub(in crate::ops::cpu) fn matrix<E>(
        &self,
        name: Option<String>,
        new: impl FnOnce() -> Result<Matrix, E>,
    ) -> Result<Arc<Matrix>, E> {
        find(&self.matrices, name.map(|name| (self.network, name)), new)
    }

    pub(in crate::ops::cpu) fn filters<E>(
        &self,
        name: Option<String>,
        new: impl FnOnce() -> Result<Filters, E>,
    ) -> Result<Arc<Filters>, E> {
        find(&self.filters, name.map(|name| (self.network, name)), new)
    }
}

/// What has no name is not kept.
fn find<T, E>(
    known: &InUse<T>,
    name: Option<(&'static str, String)>,
    new: impl FnOnce() -> Result<T, E>,
) -> Result<Arc<T>, E> {
    let Some(name) = name else { return new().map(Arc::new) };
    let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = lock().get(&name).and_then(Weak::upgrade) {
        return Ok(there);
    }
    let made = Arc::new(new()?);
    lock().insert(name, Arc::downgrade(&made));
    Ok(made)
}
