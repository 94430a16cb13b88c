use super::*;
use std::time::UNIX_EPOCH;

#[test]
fn timestamps_that_cannot_be_right_have_no_age() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for (published, want) in [
        (1_800_000_000, Some(0)),
        (1_799_999_990, Some(10)),
        (1_800_000_005, Some(0)),
        (1_800_000_006, None),
        (1_800_000_000 - MAX_AGE.as_secs(), Some(MAX_AGE.as_secs())),
        (1_800_000_000 - MAX_AGE.as_secs() - 1, None),
        (0, None),
        (1_800_000_000_000, None),
    ] {
        let got = age(UNIX_EPOCH + Duration::from_secs(published), now);
        assert_eq!(got, want.map(Duration::from_secs), "{published}");
    }
}
