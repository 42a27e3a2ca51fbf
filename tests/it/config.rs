//! The configuration: which source wins, and what is refused in which words.

use std::io::Write;
use std::path::PathBuf;

use kvlens::config::dispatch::RequestPlane;
use kvlens::config::{Config, Sources, Values, reference};
use kvlens::select::RouterMode;
use tempfile::NamedTempFile;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text.as_bytes())
        .expect("a temporary file can be written");
    file
}

fn sources(file: Option<&NamedTempFile>, environment: &[(&str, &str)]) -> Sources {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    Sources {
        file: file.map(|file| file.path().to_owned()),
        environment: environment.iter().map(owned).collect(),
        ..Sources::default()
    }
}

/// The problems, with the file's name as `FILE`.
fn problems(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let file = file(text);
    let error = Config::load(&sources(Some(&file), environment)).expect_err("it must be refused");
    let path = file.path().display().to_string();
    let shown = |problem: &kvlens::config::problem::Problem| problem.to_string();
    let texts = error.problems.iter().map(shown);
    texts.map(|text| text.replace(&path, "FILE")).collect()
}

#[test]
fn nothing_set_is_the_defaults() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.frontend.limits.body_bytes_max, 67_108_864);
    assert_eq!(
        config.frontend.admin_address().to_string(),
        "127.0.0.1:8001"
    );
    assert!(!config.media.enabled);
}

#[test]
fn a_higher_source_wins() {
    let file = file("[frontend]\nport = 1\n[router]\nmode = \"random\"\n");
    let mut sources = sources(Some(&file), &[]);
    sources.role = Values::default()
        .set("media.enabled", true)
        .set("frontend.port", 7)
        .set("router.mode", "kv");
    let port = |sources: &Sources| Config::load(sources).unwrap().frontend.port;
    assert_eq!(port(&sources), 1, "file over role");

    sources.environment = vec![("KVLENS_FRONTEND_PORT".into(), "2".into())];
    assert_eq!(port(&sources), 2, "environment over file");

    sources.flags = Values::default()
        .set("frontend.port", 3)
        .set_given("router.mode", None::<RouterMode>);
    assert_eq!(port(&sources), 3, "flags over environment");

    let config = Config::load(&sources).unwrap();
    assert_eq!(
        config.router.mode,
        RouterMode::Random,
        "an absent flag sets nothing"
    );
    assert!(
        config.media.enabled,
        "a role's default stays where nothing else is said"
    );
}

#[test]
fn environment_variables_set_values_of_every_kind() {
    let config = Config::load(&sources(
        None,
        &[
            ("PATH", "/bin"),
            ("KVLENS_CONFIG", "not a key"),
            ("KVLENS_FRONTEND_HOST", "::1"),
            ("KVLENS_FRONTEND_LIMITS_BODY_BYTES_MAX", "1024"),
            ("KVLENS_FRONTEND_EXPOSE_ROUTING", "true"),
            ("KVLENS_MEDIA_PORTS", "80, 8080"),
            ("KVLENS_MEDIA_ALLOW", "10.0.0.0/8,images.example"),
            ("KVLENS_ROUTER_MODE", "round-robin"),
            ("KVLENS_ROUTER_TTL_SECS", "0.5"),
            ("KVLENS_LOG_LEVEL", "1"),
        ],
    ))
    .unwrap();
    assert_eq!(config.frontend.address().to_string(), "[::1]:8000");
    assert_eq!(config.frontend.limits.body_bytes_max, 1024);
    assert!(config.frontend.expose_routing);
    assert_eq!(config.media.ports, [80, 8080]);
    assert_eq!(config.media.allow, ["10.0.0.0/8", "images.example"]);
    assert_eq!(config.router.mode, RouterMode::RoundRobin);
    assert!((config.router.ttl_secs - 0.5).abs() < f64::EPSILON);
    assert_eq!(config.log.level, "1");
}

#[test]
fn what_is_refused_names_its_key_and_source() {
    for (text, environment, expected) in [
        (
            "[frontend]\nprot = 1\n",
            &[] as &[(&str, &str)],
            "unknown key frontend.prot in file FILE; did you mean frontend.port?",
        ),
        (
            "[colour]\nred = 1\n",
            &[],
            "unknown key colour in file FILE",
        ),
        (
            "",
            &[("KVLENS_FRONTEND_PROT", "1")],
            "unknown environment variable KVLENS_FRONTEND_PROT; did you mean KVLENS_FRONTEND_PORT?",
        ),
        (
            "[frontend]\nport = \"x\"\n",
            &[],
            "invalid type: found string \"x\", expected u16 for key \"frontend.port\" in file FILE",
        ),
        (
            "",
            &[("KVLENS_FRONTEND_PORT", "x")],
            "invalid type: found string \"x\", expected u16 for key \"frontend.port\" in \
             environment variable KVLENS_FRONTEND_PORT",
        ),
        (
            "[router]\nmode = \"magic\"\n",
            &[],
            "unknown variant: found `magic`, expected `one of `kv`, `round-robin`, `random`, \
             `power-of-two`, `least-loaded`, `device-aware-weighted`, `direct`` for key \"router.mode\" in file FILE",
        ),
        (
            "[router]\nhost_cache_hit_weight = 1.5\n",
            &[],
            "router.host_cache_hit_weight is 1.5 in file FILE, but must be 0 to 1",
        ),
        (
            "",
            &[("KVLENS_ROUTER_DISK_CACHE_HIT_WEIGHT", "-0.1")],
            "router.disk_cache_hit_weight is -0.1 in environment variable \
             KVLENS_ROUTER_DISK_CACHE_HIT_WEIGHT, but must be 0 to 1",
        ),
        (
            "[router]\noverlap_score_weight = -1.0\n",
            &[],
            "router.overlap_score_weight is -1 in file FILE, but must be 0 to 1000000",
        ),
        (
            "[log]\nlevel = \"info\"\nlevel = \"warn\"\n",
            &[],
            "file FILE, line 3, column 1: duplicate key",
        ),
        (
            "frontend = 3\n",
            &[],
            "invalid type: found signed int `3`, expected struct FrontendConfig for key \
             \"frontend\" in file FILE",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn what_engines_and_gpus_cannot_have_names_its_key_too() {
    for (text, environment, expected) in [
        (
            "[engine]\ndriver_min = 580\n",
            &[] as &[(&str, &str)],
            "invalid type: found signed int `580`, expected a string for key \"engine.driver_min\" in \
             file FILE",
        ),
        (
            "",
            &[("KVLENS_ENGINE_DRIVER_MIN", "v580")],
            "\"v580\" is no version of a driver, as 580 or 580.65.06 for key \"engine.driver_min\" in \
             environment variable KVLENS_ENGINE_DRIVER_MIN",
        ),
        (
            "[workers.gpu-0]\nengine = \"mock\"\ngpus = [0]\n",
            &[],
            "invalid type: found signed int `0`, expected a string for key \"workers.gpu-0.gpus.0\" in \
             file FILE",
        ),
        (
            "[gpu]\nseverities = [\"xid_109=loud\"]\n",
            &[],
            "gpu.severities: \"loud\" is no severity; there are info, degraded, unknown, not_ready, fatal \
             (in file FILE)",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn what_cannot_hold_together_is_refused_with_all_its_sources() {
    for (text, environment, expected) in [
        (
            "[frontend]\nport = 8000\nadmin_port = 8000\n",
            &[] as &[(&str, &str)],
            "frontend.admin_port is frontend.port: the two listeners need two addresses \
             (frontend.port in file FILE, frontend.admin_port in file FILE)",
        ),
        (
            "[media]\ntotal_secs = 2\n",
            &[],
            "media.connect_secs or media.first_byte_secs is above media.total_secs \
             (media.total_secs in file FILE)",
        ),
        (
            "[media]\ntransfer = \"http\"\n",
            &[],
            "media.transfer is http and media.http_listen is unset: engines could fetch nothing \
             (media.transfer in file FILE)",
        ),
        (
            "[media]\nhttp_listen = \"0.0.0.0:8002\"\n",
            &[],
            "media.http_listen is every address of this host and media.http_url is unset: engines \
             would not know where to fetch (media.http_listen in file FILE)",
        ),
        (
            "[media]\nhttp_url = \"http://host/media\"\n",
            &[],
            "media.http_url is not http://HOST:PORT, where PORT may be {port} \
             (media.http_url in file FILE)",
        ),
        (
            "[frontend]\nhand_over = true\n[media]\nhttp_listen = \"127.0.0.1:8002\"\n",
            &[],
            "frontend.hand_over is true and media.http_listen has a port of its own: a frontend that \
             takes over could not have it too; give it port 0 (frontend.hand_over in file FILE, \
             media.http_listen in file FILE)",
        ),
        (
            "[router]\nmode = \"random\"\n",
            &[("KVLENS_ROUTER_TEMPERATURE", "0.5")],
            "router.temperature is above 0 and router.mode is not kv: nothing would use it \
             (router.mode in file FILE, router.temperature in environment variable \
             KVLENS_ROUTER_TEMPERATURE)",
        ),
        (
            "[router]\nmode = \"direct\"\n",
            &[],
            "router.mode is direct and router.allow_overrides is false: no request could name its \
             worker (router.mode in file FILE)",
        ),
        (
            "[router]\npreferred_labels = [\"fast\"]\n",
            &[],
            "router.preferred_labels has an entry that is not label=weight \
             (router.preferred_labels in file FILE)",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn credentials_and_planes_go_together() {
    for (text, environment, expected) in [
        (
            "[etcd]\nuser = \"kvlens\"\n",
            &[] as &[(&str, &str)],
            "etcd.user and etcd.password_file go together, and one of them is unset (etcd.user in \
             file FILE)",
        ),
        (
            "",
            &[("KVLENS_ETCD_CERT_FILE", "/etc/cert.pem")],
            "etcd.cert_file and etcd.cert_key_file go together, and one of them is unset \
             (etcd.cert_file in environment variable KVLENS_ETCD_CERT_FILE)",
        ),
        (
            "[frontend]\nrouter = \"remote\"\n",
            &[],
            "frontend.router is remote and nats.servers is unset: no router could be asked \
             (frontend.router in file FILE)",
        ),
        (
            "[nats]\nnkey_file = \"/n\"\ncreds_file = \"/c\"\n",
            &[],
            "nats.nkey_file and nats.creds_file are both set: one of them says who we are \
             (nats.nkey_file in file FILE, nats.creds_file in file FILE)",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn requests_over_nats_need_nats() {
    let text = "[dispatch]\nrequest_plane = \"nats\"\n";
    let expected = "dispatch.request_plane is nats and nats.servers is unset: no engine could be \
                    asked (dispatch.request_plane in file FILE)";
    assert_eq!(problems(text, &[]), [expected]);
    let named = [("KVLENS_NATS_SERVERS", "nats://127.0.0.1:4222")];
    let config = Config::load(&sources(Some(&file(text)), &named)).unwrap();
    assert_eq!(config.dispatch.request_plane, RequestPlane::Nats);
    let fetched = format!("{text}[media]\nhttp_url = \"https://host:1\"\n");
    let expected = "dispatch.request_plane is nats and media.http_url is https: engines' gates fetch \
                    over plain HTTP alone (media.http_url in file FILE, dispatch.request_plane in file \
                    FILE)";
    assert_eq!(problems(&fetched, &named), [expected]);
}

#[test]
#[cfg(feature = "etcd")]
fn etcd_is_named_by_urls_and_encrypted_as_a_whole() {
    for (text, expected) in [
        (
            "[etcd]\nendpoints = [\"127.0.0.1:2379\"]\n",
            "etcd.endpoints has an entry that is neither http://host:port nor https://host:port \
             (etcd.endpoints in file FILE)",
        ),
        (
            "[etcd]\nendpoints = [\"https://a:1\", \"http://b:1\"]\nca_file = \"ca.pem\"\n",
            "etcd.ca_file or etcd.cert_file is set, and etcd.endpoints has an entry that is not \
             https://…: nothing there would be encrypted (etcd.endpoints in file FILE, etcd.ca_file \
             in file FILE)",
        ),
    ] {
        assert_eq!(problems(text, &[]), [expected], "{text}");
    }
}

#[test]
#[cfg(not(feature = "etcd"))]
fn etcd_is_refused_where_it_is_not_built_in() {
    let text = "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n";
    let expected = "etcd.endpoints is set, and this program was built without etcd: unset it, or \
                    build with --features etcd (etcd.endpoints in file FILE)";
    assert_eq!(problems(text, &[]), [expected]);
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (text, environment, expected) in [
        (
            "[router]\nhost_cache_hit_weight = nan\n",
            &[] as &[(&str, &str)],
            "router.host_cache_hit_weight is NaN in file FILE, but must be finite and 0 to 1",
        ),
        (
            "[router]\ntemperature = inf\n",
            &[],
            "router.temperature is inf in file FILE, but must be finite and at least 0",
        ),
        (
            "",
            &[("KVLENS_MEDIA_TOTAL_SECS", "nan")],
            "media.total_secs is NaN in environment variable KVLENS_MEDIA_TOTAL_SECS, but must be \
             finite and at least 0.001",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    for (text, environment, expected) in [
        (
            "[router]\nqueue_threshold = -1.0\n",
            &[] as &[(&str, &str)],
            "router.queue_threshold is -1 in file FILE, but must be at least 0",
        ),
        (
            "",
            &[("KVLENS_ROUTER_QUEUE_REQUESTS_MAX", "0")],
            "router.queue_requests_max is 0 in environment variable \
             KVLENS_ROUTER_QUEUE_REQUESTS_MAX, but must be 1 to 1048576",
        ),
        (
            "[router]\nqueue_policy = \"magic\"\n",
            &[],
            "unknown variant: found `magic`, expected `one of `fcfs`, `wspt`, `lcfs`` for key \
             \"router.queue_policy\" in file FILE",
        ),
        (
            "[router]\nqueue_threshold = nan\n",
            &[],
            "router.queue_threshold is NaN in file FILE, but must be finite and at least 0",
        ),
    ] {
        assert_eq!(problems(text, environment), [expected], "{text}");
    }
}

#[test]
fn all_problems_come_in_one_run() {
    let found = problems(
        "prot = 1\n[frontend]\nprot = 1\n[frontend.limits]\nimages = 3\n[media]\nside_max = \"big\"\n",
        &[("KVLENS_X", "1")],
    );
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn a_missing_file_is_an_error() {
    let sources = Sources {
        file: Some(PathBuf::from("/nonexistent/k.toml")),
        ..Sources::default()
    };
    let text = Config::load(&sources).unwrap_err().to_string();
    assert!(
        text.starts_with("cannot read configuration file /nonexistent/k.toml: No such file"),
        "{text}"
    );
}

#[test]
fn the_reference_with_its_defaults_uncommented_is_the_default() {
    let reference = reference::reference();
    let is_default = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    assert!(reference.lines().filter(is_default).count() > 30);
    let uncommented: String = reference
        .lines()
        .map(|line| if is_default(&line) { &line[1..] } else { line })
        .map(|line| line.to_owned() + "\n")
        .collect();
    let file = file(&uncommented);
    assert_eq!(
        Config::load(&sources(Some(&file), &[])).unwrap(),
        Config::default()
    );
    let plain = crate::config::file(&reference);
    assert_eq!(
        Config::load(&sources(Some(&plain), &[])).unwrap(),
        Config::default(),
        "as printed, it sets nothing"
    );
}
