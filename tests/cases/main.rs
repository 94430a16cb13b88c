//! End-to-end cases: the real relay and handler, a real RabbitMQ, SQS, S3 and the Lambda Runtime API over HTTP.
//!
//! One stack serves all cases; each has its own webhook receiver, so that they do not see each other. Cases that break
//! a part bring that part along.

mod again;
mod backend_down;
mod batch;
mod cancel;
mod claim;
mod connections;
mod contract;
mod credential;
mod deadline;
mod deletions;
mod deployed;
mod doctor;
mod generate;
mod happy;
mod ledger;
mod load;
mod lora_cache;
mod picture;
mod provenance;
mod refused;
mod relay;
mod relay_aws;
mod relay_bytes;
mod relay_check;
mod relay_dead_letters;
mod relay_fifo;
mod relay_limits;
mod relay_metrics;
mod relay_odd;
mod relay_payload;
mod relay_peers;
mod relay_tls;
mod relay_traces;
mod safety;
mod scene;
mod secrets;
mod shutdown;
mod signed;
mod startup;
mod storage_faults;
mod together;
mod traces;
mod variables;
mod weights;
mod weights_s3;
mod worker;
