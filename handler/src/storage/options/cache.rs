//! How LoRAs are fetched and kept on the volume.

use crate::storage::cache::{Limits, Parts};
use clap::Args;
use std::time::Duration;

/// Wait before the first retry of a part.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// How LoRAs are fetched and kept on the volume.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "LoRAs on the volume")]
pub struct CacheConfig {
    /// Most bytes of all kept LoRAs together; the least recently used go first.
    #[arg(long, env = "EASEL_CACHE_MAX_BYTES", default_value_t = 16 << 30, value_name = "BYTES")]
    pub cache_max_bytes: u64,
    /// Bytes of the volume that are left free.
    #[arg(long, env = "EASEL_CACHE_RESERVE_BYTES", default_value_t = 64 << 20, value_name = "BYTES")]
    pub cache_reserve_bytes: u64,
    /// LoRAs are downloaded in parts of so many bytes; a smaller file is one part.
    #[arg(long, env = "EASEL_LORA_PART_BYTES", default_value_t = 8 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 16..=1 << 30))]
    pub lora_part_bytes: u64,
    /// Parts that are downloaded at a time.
    #[arg(long, env = "EASEL_LORA_PARALLEL_PARTS", default_value_t = 4, value_name = "COUNT",
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub lora_parallel_parts: u8,
}

impl CacheConfig {
    /// How a file is cut.
    pub fn parts(&self) -> Parts {
        let Self { lora_part_bytes: bytes, lora_parallel_parts: parallel, .. } = *self;
        Parts { bytes, parallel: usize::from(parallel), first_delay: FIRST_DELAY }
    }

    /// How much of the volume is used.
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.cache_max_bytes, reserve: self.cache_reserve_bytes }
    }
}
