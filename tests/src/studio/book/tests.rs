use super::*;
use std::path::Path;

fn book(folder: &Path) -> Book {
    Book::open(Shelf::open(folder).unwrap()).unwrap()
}

fn end(book: &Book, id: i64) {
    book.change(id, |record, at_ms| {
        record.completes += 1;
        record.end(End::Complete, at_ms);
    });
}

#[test]
fn what_has_ended_is_there_after_a_restart_and_counts_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let first = book(folder.path());
    let [ended, open] = [(), ()].map(|()| first.enter("halftone", |id| json!({ "generation_id": id })));
    end(&first, ended);
    let again = book(folder.path());
    assert_eq!(again.record(ended).unwrap().end, Some(End::Complete));
    assert!(again.record(open).is_none(), "a task whose stack is gone never ends");
    assert_eq!(again.follow().0.data["status"]["ledger"]["published"], 0);
    assert!(again.enter("halftone", |id| json!({ "generation_id": id })) > ended, "two tasks of one id");
}

#[test]
fn who_follows_gets_what_is_there_and_then_each_change() {
    let folder = tempfile::tempdir().unwrap();
    let book = book(folder.path());
    let id = book.enter("halftone", |id| json!({ "generation_id": id }));
    let (all, mut changes) = book.follow();
    assert_eq!(all.data["tasks"][0]["id"], id);
    book.mark_once(id, Station::Relay, "seen");
    book.mark_once(id, Station::Relay, "seen again");
    let seen = changes.try_recv().unwrap();
    assert_eq!((seen.name, &seen.data["marks"][0]["station"]), ("task", &json!("relay")));
    assert_eq!(book.record(id).unwrap().marks.len(), 1);
}

#[test]
fn a_task_keeps_the_end_that_was_told_first() {
    let folder = tempfile::tempdir().unwrap();
    let book = book(folder.path());
    let id = book.enter("halftone", |id| json!({ "generation_id": id }));
    end(&book, id);
    book.dead_letter(id);
    assert_eq!(book.record(id).unwrap().end, Some(End::Complete));
}
