//! When a deletion is tried again, and when no more. With a queue: the end-to-end cases of deletions.

use super::*;

#[test]
fn a_deletion_is_tried_again_ever_later_and_not_once_others_can_see_the_message() {
    let mut deletion = Deletion::new("receipt", Instant::now() + Duration::from_secs(3600));
    for delay in [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis) {
        let before = Instant::now();
        deletion = deletion.again().unwrap();
        assert!((before + delay..=Instant::now() + delay).contains(&deletion.due), "{delay:?}");
    }
    let until = Instant::now() + FIRST_DELAY;
    assert!(Deletion::new("receipt", until).again().is_none(), "others see the message by then");
}
