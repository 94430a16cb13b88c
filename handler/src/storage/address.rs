//! The default base of `result_url`: the address of the pictures' bucket.

use crate::storage::options::StoreConfig;
use aws_config::SdkConfig;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_types::service_config::ServiceConfigKey;
use futures_util::FutureExt;

/// S3's regions from before 20 March 2019, a closed list. The address without a region works for their buckets; for later regions S3
/// answers it with 400.
const LEGACY_REGIONS: [&str; 16] = [
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

/// What the address of the pictures' bucket depends on.
#[derive(Debug, Clone)]
pub(super) struct ResultAddress {
    bucket: String,
    region: Option<String>,
    endpoint: Option<String>,
    /// Whether the bucket's name is in the path, not in the host.
    path_style: bool,
}

impl ResultAddress {
    /// By the same settings as the S3 client.
    pub(super) fn of(config: &StoreConfig, aws: &SdkConfig) -> Self {
        let endpoint = endpoint(aws);
        Self {
            bucket: config.bucket.clone(),
            region: aws.region().map(ToString::to_string),
            path_style: config.path_style.unwrap_or(endpoint.is_some()),
            endpoint,
        }
    }

    /// The address of the bucket: without a region, as in the Python worker, wherever that works. It does not for a name with dots,
    /// which S3's certificate does not cover.
    pub(super) fn url(&self) -> String {
        let Self { bucket, region, endpoint, .. } = self;
        let is_legacy = region.as_deref().is_none_or(|region| LEGACY_REGIONS.contains(&region));
        let plain = format!("https://{bucket}.s3.amazonaws.com");
        if endpoint.is_none() && is_legacy && !bucket.contains('.') {
            return plain;
        }
        self.resolved().unwrap_or(plain)
    }

    /// The address by the SDK's rules for partition, region, path and host.
    fn resolved(&self) -> Option<String> {
        let region = self.region.clone().unwrap_or_else(|| "us-east-1".into());
        let params = Params::builder().bucket(&self.bucket).region(region).set_endpoint(self.endpoint.clone());
        let params = params.force_path_style(self.path_style).build().ok()?;
        let resolver = DefaultResolver::new();
        // It only computes, so it is ready at once.
        let found = resolver.resolve_endpoint(&params).now_or_never()?.ok()?;
        Some(found.url().trim_end_matches('/').to_string())
    }
}

/// The endpoint of S3, if environment or profile set one, in the client's order of precedence.
pub(super) fn endpoint(aws: &SdkConfig) -> Option<String> {
    let general = aws.endpoint_url().map(str::to_string);
    if aws.get_origin("endpoint_url").is_client_config() {
        return general;
    }
    let key =
        ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    aws.service_config().and_then(|config| config.load_config(key)).or(general)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_where_the_endpoint_the_region_and_the_name_say() {
        let minio = Some("http://minio:9000");
        for (bucket, region, endpoint, path_style, expected) in [
            ("pics", Some("us-east-1"), None, false, "https://pics.s3.amazonaws.com"),
            ("pics", Some("us-west-2"), None, false, "https://pics.s3.amazonaws.com"),
            ("pics", Some("eu-central-1"), None, true, "https://pics.s3.amazonaws.com"),
            ("pics", None, None, false, "https://pics.s3.amazonaws.com"),
            // A region from after March 2019.
            ("pics", Some("eu-south-1"), None, false, "https://pics.s3.eu-south-1.amazonaws.com"),
            ("my.pics", Some("eu-central-1"), None, false, "https://s3.eu-central-1.amazonaws.com/my.pics"),
            ("my.pics", None, None, false, "https://s3.us-east-1.amazonaws.com/my.pics"),
            ("pics", Some("cn-north-1"), None, false, "https://pics.s3.cn-north-1.amazonaws.com.cn"),
            ("my.pics", Some("cn-northwest-1"), None, false, "https://s3.cn-northwest-1.amazonaws.com.cn/my.pics"),
            ("pics", Some("us-gov-west-1"), None, false, "https://pics.s3.us-gov-west-1.amazonaws.com"),
            ("pics", Some("us-east-1"), minio, true, "http://minio:9000/pics"),
            ("my.pics", Some("us-east-1"), minio, true, "http://minio:9000/my.pics"),
            ("pics", Some("us-east-1"), minio, false, "http://pics.minio:9000"),
            ("pics", Some("us-east-1"), Some("https://s3.example.org/base/"), true, "https://s3.example.org/base/pics"),
            ("pics", Some("us-east-1"), Some("http://127.0.0.1:9000"), false, "http://127.0.0.1:9000/pics"),
        ] {
            let address = ResultAddress {
                bucket: bucket.into(),
                region: region.map(Into::into),
                endpoint: endpoint.map(Into::into),
                path_style,
            };
            assert_eq!(address.url(), expected, "{address:?}");
        }
    }
}
