//! `handler weights pull` against a hub that is busy, closed, or answers with something else.

use crate::{
    context::case,
    weights::{TOKEN, UNET, VAE, files, pull, pull_from, verify},
};
use e2e::hub::{Access, Behavior, COMMIT, Fault, Hub, PULL_REQUEST};
use std::time::{Duration, Instant};

fn fault(path: &str, status: u16, headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, value.to_string())).collect();
    Fault { path: path.into(), status, headers, body: "[".into() }
}

#[test]
fn a_busy_hub_is_asked_again_after_the_time_that_it_names() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-busy")?);
        let faults = vec![
            fault("/revision/", 429, &[("RateLimit", "\"api\";r=0;t=1"), ("RateLimit-Policy", "\"api\";q=500;w=300")]),
            fault("/revision/", 502, &[]),
            fault("/tree/", 503, &[("Retry-After", "1")]),
            // The connection ends within the answer.
            fault("/tree/", 200, &[]),
            fault("/resolve-cache/", 429, &[("Retry-After", "1")]),
            fault(UNET, 500, &[]),
        ];
        hub.set_behavior(Behavior { faults, ..Behavior::default() });
        let clock = Instant::now();
        let (fine, text) = pull(run, "pull-busy", &hub, &folder, false).await?;
        assert!(fine, "{text}");
        assert!(clock.elapsed() >= Duration::from_secs(4), "{:?}", clock.elapsed());
        for said in ["answered 429", "answered 502", "answered 503", "answered 500", "again in 2.0 s", "again in 1.0 s"]
        {
            assert!(text.contains(said), "no `{said}`: {text}");
        }
        assert!(verify(run, "verify-busy", &folder).await?.0);
        Ok(())
    });
}

#[test]
fn a_hub_that_asks_for_more_than_minutes_is_not_waited_for() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-tomorrow")?);
        let faults = vec![fault("/tree/", 429, &[("Retry-After", "86400")])];
        hub.set_behavior(Behavior { faults, ..Behavior::default() });
        let clock = Instant::now();
        let (fine, text) = pull(run, "pull-tomorrow", &hub, &folder, false).await?;
        assert!(!fine && text.contains("86400 s") && text.contains("429"), "{text}");
        assert!(clock.elapsed() < Duration::from_secs(60));
        Ok(())
    });
}

#[test]
fn a_closed_repository_is_told_by_the_hubs_own_reason_and_asked_once() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let hub = Hub::start(files()?).await?;
        let (gated, private) = (Access::Gated("another".into()), Access::Private("another".into()));
        for (name, access, token, said) in [
            ("gated", &gated, false, ["is gated", "GatedRepo", "You must have access to it", "set a token"]),
            ("not-listed", &gated, true, ["is gated", "403", "not in the authorized list", "accept its conditions"]),
            ("private", &private, false, ["private or not there", "RepoNotFound", "Invalid username", "set a token"]),
            ("wrong-token", &private, true, ["private or not there", "401", "Invalid credentials", "HF_TOKEN"]),
        ] {
            let folder = run.folder(&format!("pulled-{name}"))?;
            hub.set_behavior(Behavior { access: access.clone(), ..Behavior::default() });
            let (fine, text) = pull(run, &format!("pull-{name}"), &hub, &folder, token).await?;
            assert!(!fine && said.iter().all(|said| text.contains(said)), "{said:?}: {text}");
            assert!(!text.contains("again in"), "{text}");
        }
        assert_eq!(hub.fetches(), []);
        hub.set_behavior(Behavior { access: Access::Gated(TOKEN.into()), ..Behavior::default() });
        let (fine, text) = pull(run, "pull-opened", &hub, &run.folder("pulled-opened")?, true).await?;
        assert!(fine, "{text}");
        Ok(())
    });
}

#[test]
fn what_is_not_there_is_named() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-missing")?);
        for (name, repo, revision, said) in [
            ("repo", "easel/other", "main", ["easel/other is gated, private or not there", "RepoNotFound", "--repo"]),
            ("revision", "easel/tiny", "v2", ["has no revision v2", "RevisionNotFound", "--revision"]),
        ] {
            let (fine, text) = pull_from(run, &format!("pull-no-{name}"), &hub, (repo, revision), &folder).await?;
            assert!(!fine && said.iter().all(|said| text.contains(said)), "{said:?}: {text}");
        }
        Ok(())
    });
}

#[test]
fn the_other_hosts_403_is_not_the_hubs() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let hub = Hub::start(files()?).await?;
        // A signed address that has expired: the hub gives a new one.
        hub.set_behavior(Behavior { expired: 1, ..Behavior::default() });
        let (fine, text) = pull(run, "pull-expired", &hub, &run.folder("pulled-expired")?, true).await?;
        assert!(fine, "{text}");
        hub.set_behavior(Behavior { expired: 100, ..Behavior::default() });
        let (fine, text) = pull(run, "pull-forbidden", &hub, &run.folder("pulled-forbidden")?, false).await?;
        let host = hub.cdn();
        assert!(!fine && text.contains(&format!("{host}, to which the hub redirects, answered 403")), "{text}");
        assert!(!text.contains("gated") && !text.contains("HF_TOKEN"), "{text}");
        Ok(())
    });
}

#[test]
fn a_listing_has_pages_and_a_pull_request_is_a_revision() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-pages")?);
        hub.set_behavior(Behavior { page_size: Some(3), ..Behavior::default() });
        let (fine, text) = pull_from(run, "pull-pages", &hub, ("easel/tiny", PULL_REQUEST), &folder).await?;
        assert!(fine && text.contains(COMMIT), "{text}");
        assert!(verify(run, "verify-pages", &folder).await?.0);
        Ok(())
    });
}

#[test]
fn what_comes_in_place_of_a_file_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 6557406\n";
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let hub = Hub::start(files()?).await?;
        for (name, path, content, said) in [
            ("pointer", VAE, pointer, "a git-lfs pointer"),
            ("page", VAE, "<!doctype html><title>Sign in</title>", "a web page"),
            ("page-for-json", "unet/config.json", "<html>Sign in</html>", "a web page"),
            ("error", VAE, r#"{"error":"no"}"#, "JSON"),
        ] {
            let folder = run.folder(&format!("pulled-{name}"))?;
            let replaced = [(path.to_string(), content.to_string())].into();
            hub.set_behavior(Behavior { replaced, ..Behavior::default() });
            let (fine, text) = pull(run, &format!("pull-{name}"), &hub, &folder, false).await?;
            assert!(!fine && text.contains(said) && text.contains(path), "{name}: {text}");
            assert!(!folder.join(path).exists() && !text.contains("again in"), "{text}");
        }
        Ok(())
    });
}
