//! Layers, defaults, and the text of every error, through the whole of the resolution.

use trustformers_batching::{
    AdaptiveConfig, BreakerConfig, Dispatch, Isolation, OptimizationTarget, PaddingStrategy, Priority,
};

use super::*;

fn read(text: &str) -> Result<Settings, ConfigError> {
    Settings::from_toml_str(text, "serve.toml")
}

/// The errors of a file, one a line.
fn errors(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn env(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn nothing_said_serves_the_builtins_with_the_documented_defaults() {
    let settings = Settings::load(None, env(&[("HOME", "/home/u")]), &[]).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(
        settings.server,
        ServerSettings {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            workers: cores,
            max_body_size: 64_000_000,
            request_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(30),
            max_connections: 4096,
        }
    );
    assert_eq!(settings.logging, LoggingSettings { level: LogLevel::Info, format: LogFormat::Text });
    let device = DeviceSettings { default: DeviceSpec::Auto, threads: cores, memory_limit: None };
    assert_eq!(settings.device, device);
    assert_eq!(
        settings.batching,
        BatchingSettings {
            mode: None,
            dispatch: Dispatch::Eager,
            isolation: Isolation::Bisect,
            max_batch_size: 32,
            min_batch_size: 1,
            max_wait_time: Duration::from_millis(50),
            max_queue_size: 4096,
            max_queue_tokens: None,
            max_queue_bytes: None,
            max_batch_tokens: None,
            optimization_target: OptimizationTarget::Balanced,
            latency_slo: None,
            memory_limit: None,
            enable_priority_scheduling: true,
            priority_ageing: Duration::from_secs(10),
            max_priority: Priority::Critical,
            stall_timeout: Duration::from_secs(30),
            event_log: None,
            timeout_multipliers: TimeoutMultipliers { low: 2.0, normal: 1.0, high: 0.5, critical: 0.25 },
            breaker: BreakerConfig {
                failures: 5,
                window: Duration::from_secs(10),
                open: Duration::from_secs(10),
            },
            dynamic: DynamicSettings {
                target_utilization: 0.8,
                size_increment: 4,
                padding_strategy: PaddingStrategy::Minimal,
                enable_bucketing: true,
                bucket_boundaries: vec![128, 256, 512, 1024, 2048],
                memory_aware: true,
                bytes_per_element: None,
            },
            adaptive: AdaptiveConfig {
                low_load_threshold: 10.0,
                high_load_threshold: 100.0,
                adjustment_interval: Duration::from_secs(30),
                high_load_batch_size: 64,
                low_load_timeout: Duration::from_millis(10),
            },
            continuous: ContinuousSettings {
                block_size: 16,
                kv_cache_memory: None,
                max_sequences: 64,
                max_step_tokens: 2048,
                prefill_chunk: None,
                inter_token_target: None,
                prefix_caching: true,
                preemption: true,
            },
        }
    );
    assert_eq!(settings.model_repository, None);
    assert_eq!(settings.builtin_models, Path::new("/home/u/.cache/trustformers-serve/models"));
    assert_eq!(settings.models.keys().collect::<Vec<_>>(), ["delay", "minilm", "mlp", "resnet18", "tinylm"]);
    let delay = DelaySettings { batch_time: Duration::from_millis(5), item_time: Duration::ZERO };
    assert_eq!(
        settings.models["delay"],
        ModelSettings {
            name: "delay".to_owned(),
            path: None,
            format: Some(Format::Builtin),
            version: "1".to_owned(),
            versions: Versions::Latest,
            device: DeviceSpec::Auto,
            instances: 1,
            threads: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            warmup: 1,
            load: true,
            max_length: None,
            truncation: None,
            static_batch: false,
            dtype: None,
            quantization: None,
            batching: settings.batching.clone(),
            delay: Some(delay),
        }
    );
    assert_eq!(settings.models["mlp"].delay, None);
}

#[test]
fn the_cache_folder_is_the_environments() {
    let both = env(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/cache")]);
    let settings = Settings::load(None, both, &[]).unwrap();
    assert_eq!(settings.builtin_models, Path::new("/cache/trustformers-serve/models"));
}

#[test]
fn models_or_a_repository_replace_the_builtins() {
    assert_eq!(read("models.delay = {}").unwrap().models.keys().collect::<Vec<_>>(), ["delay"]);
    assert!(read("model_repository = 'repo'").unwrap().models.is_empty());
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let document = Document::new("t", "[batching]\nmax_batch_size = 2\nmax_queue_size = 50", "");
    let variables = || env(&[("TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE", "3")]);
    let sets = [Override::set("batching.max_batch_size=4")];
    let resolve = |env, sets: &[_]| Settings::resolve(Some(&document), env, sets).unwrap().batching;
    assert_eq!(resolve(Vec::new(), &[]).max_batch_size, 2);
    assert_eq!(resolve(variables(), &[]).max_batch_size, 3);
    assert_eq!(resolve(variables(), &sets).max_batch_size, 4);
    assert_eq!(resolve(variables(), &sets).max_queue_size, 50);
}

#[test]
fn text_on_a_command_line_needs_no_quotes() {
    let sets = ["models.a.path=m.pt", "models.a.version=10", "batching.max_wait_time=5ms"];
    let settings = Settings::load(None, [], &sets.map(str::to_owned)).unwrap();
    assert_eq!(settings.models["a"].version, "10");
    assert_eq!(settings.batching.max_wait_time, Duration::from_millis(5));
}

#[test]
fn relative_paths_start_at_the_files_folder_or_else_here() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("serve.toml");
    std::fs::write(&file, "model_repository = 'repo'\n[models.a]\npath = '/abs/a.pt'").unwrap();
    let variables = env(&[("TRUSTFORMERS_SERVE__BUILTIN_MODELS", "built")]);
    let settings = Settings::load(Some(&file), variables, &[]).unwrap();
    assert_eq!(settings.model_repository, Some(folder.path().join("repo")));
    assert_eq!(settings.builtin_models, Path::new("built"));
    assert_eq!(settings.models["a"].path.as_deref(), Some(Path::new("/abs/a.pt")));
}

#[test]
fn a_model_overrides_only_the_batching_it_names() {
    let text =
        "[batching]\nmax_batch_size = 8\nmax_queue_size = 9\n[models.delay.batching]\nmax_batch_size = 4";
    let batching = read(text).unwrap().models["delay"].batching.clone();
    assert_eq!((batching.max_batch_size, batching.max_queue_size), (4, 9));
}

#[test]
fn fixed_batches_go_by_the_window_unless_said_otherwise() {
    assert_eq!(read("batching.mode = 'fixed'").unwrap().batching.dispatch, Dispatch::Window);
    let settings = read("models.delay.batching.mode = 'fixed'").unwrap();
    assert_eq!(settings.batching.dispatch, Dispatch::Eager);
    assert_eq!(settings.models["delay"].batching.dispatch, Dispatch::Window);
}

#[test]
fn formats_are_told_from_paths() {
    let format = |text: &str| read(&format!("[models.a]\n{text}")).unwrap().models["a"].format;
    assert_eq!(format("path = 'x/y.pt'"), Some(Format::Torchscript));
    assert_eq!(format("path = 'x/y.pth'"), Some(Format::Torchscript));
    assert_eq!(format("path = 'x/y'"), None);
    assert_eq!(format("path = 'x/y'\nformat = 'huggingface'"), Some(Format::Huggingface));
    assert_eq!(format("delay = {}"), Some(Format::Builtin));
}

#[test]
fn unknown_keys_name_file_line_key_and_the_nearest() {
    for (text, expected) in [
        ("[server]\n\nprot = 1", "serve.toml:3: unknown key `server.prot`; did you mean `server.port`?"),
        ("[sever]\nport = 1", "serve.toml:1: unknown key `sever`; did you mean `server`?"),
        ("port = 1", "serve.toml:1: unknown key `port`; did you mean `server.port`?"),
        (
            "[models.delay.batching]\nbatch_size = 1",
            "serve.toml:2: unknown key `models.delay.batching.batch_size`; \
             did you mean `models.delay.batching.max_batch_size`?",
        ),
        (
            "[server]\nmax_batch_size = 1",
            "serve.toml:2: unknown key `server.max_batch_size`; did you mean `batching.max_batch_size`?",
        ),
        ("[logging]\nzzz = 1", "serve.toml:2: unknown key `logging.zzz`; the keys here are level, format"),
        (
            "[models.\"a.b\"]\npath = 'a.pt'\ninstance = 2",
            "serve.toml:3: unknown key `models.\"a.b\".instance`; did you mean `models.\"a.b\".instances`?",
        ),
        (
            "[models.a]\npath = 'a.pt'\ninputs = [{ name = 'x', dtype = 'f32', shape = [], size = 1 }]",
            "serve.toml:3: unknown key `models.a.inputs[0].size`; the keys here are name, dtype, shape, pad",
        ),
    ] {
        assert_eq!(errors(text), expected);
    }
}

#[test]
fn wrong_values_say_what_is_taken_and_what_was_given() {
    for (text, expected) in [
        (
            "server.port = 'http'",
            "`server.port` must be a whole number from 0 to 65535, got the string \"http\"",
        ),
        (
            "server.port = 65536",
            "`server.port` must be a whole number from 0 to 65535, got the integer 65536",
        ),
        ("server.port = 80.0", "`server.port` must be a whole number from 0 to 65535, got the number 80"),
        ("server.host = 1", "`server.host` must be a text, got the integer 1"),
        ("server.host = ''", "`server.host` must be a text, got the string \"\""),
        ("server = 1", "`server` must be a table, got the integer 1"),
        ("models = []", "`models` must be a table, got an array"),
        ("model_repository = true", "`model_repository` must be a path, got the boolean true"),
        ("logging.format = 'xml'", "`logging.format` must be \"text\" or \"json\", got the string \"xml\""),
        (
            "device.default = 'gpu'",
            "`device.default` must be \"auto\" or \"cpu\" or \"cuda:N\", got the string \"gpu\"",
        ),
        (
            "server.request_timeout = true",
            "`server.request_timeout` must be a duration like \"50ms\", got the boolean true",
        ),
        (
            "server.max_body_size = -1",
            "`server.max_body_size` must be a size like \"64MB\", got the integer -1",
        ),
        ("models.delay.load = 1", "`models.delay.load` must be true or false, got the integer 1"),
        (
            "models.delay.version = 1979-05-27",
            "`models.delay.version` must be a text, got the date 1979-05-27",
        ),
        (
            "models.delay.versions = 'newest'",
            "`models.delay.versions` must be \"latest\" or \"all\" or a list of names, got the string \"newest\"",
        ),
        (
            "models.delay.instances = 0",
            "`models.delay.instances` must be a whole number from 1 to 1024, got the integer 0",
        ),
        (
            "batching.max_batch_size = 0",
            "`batching.max_batch_size` must be a whole number from 1 to 65536, got the integer 0",
        ),
    ] {
        assert_eq!(errors(text), format!("serve.toml:1: {expected}"));
    }
}

#[test]
fn numbers_without_a_unit_are_shown_with_one() {
    for (text, expected) in [
        ("batching.max_wait_time = 50", "batching.max_wait_time = 50 needs a unit: write \"50ms\""),
        ("batching.max_wait_time = '50'", "batching.max_wait_time = 50 needs a unit: write \"50ms\""),
        ("server.request_timeout = 1.5", "server.request_timeout = 1.5 needs a unit: write \"1.5s\""),
        ("server.max_body_size = 64", "server.max_body_size = 64 needs a unit: write \"64MB\""),
    ] {
        assert_eq!(errors(text), format!("serve.toml:1: {expected}"));
    }
}

#[test]
fn quantities_of_nothing_are_refused_where_something_is_needed() {
    assert_eq!(
        errors("server.max_body_size = '0B'"),
        "serve.toml:1: `server.max_body_size` must be at least \"1B\""
    );
    assert_eq!(
        errors("server.request_timeout = '0s'"),
        "serve.toml:1: `server.request_timeout` must be at least \"1ms\""
    );
    assert_eq!(
        errors("server.request_timeout = '1 day'"),
        "serve.toml:1: `server.request_timeout` is \"1 day\", not a duration like \"50ms\" \
         (units: us, ms, s, m, h)"
    );
}

#[test]
fn batching_that_contradicts_itself_names_both_places() {
    assert_eq!(
        errors("[batching]\nmode = 'fixed'\ndispatch = 'eager'\nmax_batch_tokens = 5\nmax_queue_tokens = 4"),
        "serve.toml:3: `batching.dispatch` is \"eager\", but mode is \"fixed\" (serve.toml:2): a fixed batch \
         waits for its window\n\
         serve.toml:5: `batching.max_queue_tokens` is 4, but max_batch_tokens is 5 (serve.toml:4): no batch \
         would ever be full"
    );
    assert_eq!(
        errors("[batching]\nmode = 'fixed'\nmax_queue_size = 31"),
        "serve.toml:3: `batching.max_queue_size` is 31, but max_batch_size is 32 (default): no fixed batch \
         would ever be full"
    );
    assert_eq!(
        errors("[batching]\ndispatch = 'eager'\n[models.delay.batching]\nmode = 'fixed'"),
        "[batching], serve.toml:2: `models.delay.batching.dispatch` is \"eager\", but mode is \"fixed\" \
         (serve.toml:4): a fixed batch waits for its window"
    );
}

#[test]
fn models_that_cannot_be_are_refused() {
    let model = |text: &str| errors(&format!("[models.a]\n{text}"));
    let pt = |text: &str| model(&format!("path = 'a.pt'\n{text}"));
    let builtins = "mlp, resnet18, minilm, tinylm, delay";
    for (message, expected) in [
        (
            model(""),
            format!(
                "1: `models.a` has no path, which only the built-in models need not have ({builtins}); \
                 a model of the repository is configured by its model.toml"
            ),
        ),
        (model("format = 'builtin'"), format!("1: `models.a` is not a built-in model; those are {builtins}")),
        (
            pt("format = 'builtin'"),
            "2: `models.a.path` is set, but format is \"builtin\", whose files are in builtin_models"
                .to_owned(),
        ),
        (pt("delay = {}"), "3: `models.a.delay` is for the built-in model of that name".to_owned()),
        (
            errors("models.mlp.delay = {}"),
            "1: `models.mlp.delay` is for the built-in model of that name".to_owned(),
        ),
        (
            pt("versions = 'all'"),
            "3: `models.a.versions` chooses among version folders, but this model is not a directory of them"
                .to_owned(),
        ),
        (
            model("path = 'd'\nversions = 'all'\nversion = '2'"),
            "4: `models.a.version` names one version, `versions` chooses among folders: only one can be set"
                .to_owned(),
        ),
        (
            pt("max_length = 5"),
            "3: `models.a.max_length` is for models that read text, and for inputs with `pad`".to_owned(),
        ),
        (
            pt("truncation = true"),
            "3: `models.a.truncation` is for models that read text, and for inputs with `pad`".to_owned(),
        ),
        (
            errors("[models.delay]\nstatic_batch = true"),
            "2: `models.delay.static_batch` is for TorchScript models".to_owned(),
        ),
        (
            errors("[models.delay]\ninputs = [{ name = 'x', dtype = 'f32', shape = [] }]"),
            "2: `models.delay.inputs` is for TorchScript models; a builtin model brings its own".to_owned(),
        ),
    ] {
        assert_eq!(message, format!("serve.toml:{expected}"));
    }
}

#[test]
fn names_must_be_able_to_stand_in_a_url() {
    let rule =
        "is not a name: it may have letters, digits, `-`, `_` and `.`, and starts with a letter or a digit";
    for name in ["a/b", "..", "-a", "", "ä", "a b"] {
        let message = errors(&format!("models.\"{name}\".path = 'a.pt'"));
        assert_eq!(message, format!("serve.toml:1: `models.\"{name}\"` {rule}").replace("\"-a\"", "-a"));
    }
    assert_eq!(
        errors("[models.a]\npath = 'a.pt'\nversion = '1/2'"),
        format!("serve.toml:3: `models.a.version` \"1/2\" {rule}")
    );
}

#[test]
fn declared_tensors_are_checked_one_by_one() {
    let inputs = |text: &str| errors(&format!("[models.a]\npath = 'a.pt'\ninputs = [\n{text}\n]"));
    let example = "{ name = \"x\", dtype = \"f32\", shape = [3, -1] }";
    for (message, expected) in [
        (
            inputs("{ name = 'x', dtype = 'f32', shape = [] },\n{ name = 'x', dtype = 'i64', shape = [] }"),
            "3: `models.a.inputs` declares \"x\" twice".to_owned(),
        ),
        (
            inputs("{ name = 'x', dtype = 'f32', shape = [] },\n{ name = 'y', shape = [] }"),
            format!("5: `models.a.inputs[1]` has no `dtype`; write {example}"),
        ),
        (inputs("'x'"), format!("4: `models.a.inputs[0]` must be a table like {example}, got the string \"x\"")),
        (
            inputs("{ name = 'x', dtype = 'float', shape = [] }"),
            "4: `models.a.inputs[0].dtype` must be \"f32\" or \"f64\" or \"f16\" or \"bf16\" or \"i64\" or \
             \"i32\" or \"bool\", got the string \"float\""
                .to_owned(),
        ),
        (
            inputs("{ name = 'x', dtype = 'f32', shape = [0] }"),
            "4: `models.a.inputs[0].shape` must be a list of dimensions, -1 where any size is right, got the \
             integer 0"
                .to_owned(),
        ),
        (
            inputs("{ name = 'x', dtype = 'f32', shape = [-1, -1], pad = 0 }"),
            "4: `models.a.inputs[0].pad` is for inputs with exactly one -1 dimension, but shape is [-1, -1]"
                .to_owned(),
        ),
        (
            inputs("{ name = 'x', dtype = 'i64', shape = [-1], pad = 0.5 }"),
            "4: `models.a.inputs[0].pad` is 0.5, which is no i64".to_owned(),
        ),
        (
            inputs("{ name = 'x', dtype = 'i64', shape = [-1], pad = '0' }"),
            "4: `models.a.inputs[0].pad` must be a number, got the string \"0\"".to_owned(),
        ),
        (
            errors("models.a = { path = 'a.pt', outputs = [{ name = 'x', dtype = 'f32', shape = [-1], pad = 0 }] }"),
            "1: unknown key `models.a.outputs[0].pad`; the keys here are name, dtype, shape".to_owned(),
        ),
        (
            errors("models.a = { path = 'a.pt', versions = ['1', '1'] }"),
            "1: `models.a.versions` names version \"1\" twice".to_owned(),
        ),
        (
            errors("models.a = { path = 'a', versions = [] }"),
            "1: `models.a.versions` names no version".to_owned(),
        ),
    ] {
        // A wrong list of versions is read as none, so nothing else is reported.
        assert_eq!(message, format!("serve.toml:{expected}"));
    }
}

#[test]
fn all_errors_of_all_layers_are_found_at_once() {
    let document = Document::new("serve.toml", "[server]\nport = 'x'\n[batching]\nmode = 'continuous'", "");
    let variables = env(&[("TRUSTFORMERS_SERVE__LOGGING__LEVEL", "loud")]);
    let error = Settings::resolve(Some(&document), variables, &[Override::set("nothing")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "flag --set nothing: there is no `=` in it; write --set batching.max_batch_size=64\n\
         serve.toml:2: `server.port` must be a whole number from 0 to 65535, got the string \"x\"\n\
         environment variable TRUSTFORMERS_SERVE__LOGGING__LEVEL: `logging.level` must be \"off\" or \"error\" \
         or \"warn\" or \"info\" or \"debug\" or \"trace\", got the string \"loud\"\n\
         serve.toml:4: `batching.mode` must be \"dynamic\" or \"fixed\" or \"adaptive\" or \"continuous\", got the \
         string \"continuous\""
    );
}

#[test]
fn printed_settings_say_where_each_value_is_from() {
    let document = Document::new("serve.toml", "[batching]\nmax_batch_size = 8\n[models.delay]\n", "");
    let variables = env(&[("HOME", "/h"), ("TRUSTFORMERS_SERVE__SERVER__PORT", "1")]);
    let sets = [Override::set("server.host=h"), Override::flag("--log-format", "logging.format", "json")];
    let printed = Settings::resolve(Some(&document), variables, &sets).unwrap().to_toml();
    let lines: Vec<&str> = printed.lines().collect();
    for line in [
        "# model_repository is not set",
        "builtin_models = \"/h/.cache/trustformers-serve/models\" # default",
        "[server]",
        "host = \"h\" # flag --set server.host=h",
        "port = 1 # environment variable TRUSTFORMERS_SERVE__SERVER__PORT",
        "max_body_size = \"64MB\" # default",
        "request_timeout = \"30s\" # default",
        "format = \"json\" # flag --log-format json",
        "max_batch_size = 8 # serve.toml:2",
        "max_batch_size = 8 # [batching], serve.toml:2",
        "[models.delay.batching]",
        "[models.delay.delay]",
        "batch_time = \"5ms\" # default",
    ] {
        assert!(lines.contains(&line), "{line} is not in\n{printed}");
    }
}

#[test]
fn a_line_break_in_a_flag_does_not_break_the_printed_file() {
    let sets = [Override::set("server.host=\"\"\"a\nb\"\"\"")];
    let printed = Settings::resolve(None, [], &sets).unwrap().to_toml();
    assert_eq!(read(&printed).unwrap().server.host, "a\nb");
}

#[test]
fn repository_models_are_read_over_the_same_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let (model, version) = (folder.path().join("model.toml"), folder.path().join("2.toml"));
    std::fs::write(&model, "instances = 2\nwarmup = 3\n[batching]\nmax_batch_size = 4").unwrap();
    std::fs::write(&version, "warmup = 7\nformat = 'torchscript'").unwrap();
    let settings = read("device.default = 'cpu'\nbatching.max_queue_size = 9").unwrap();
    let resolved = resolve_model_files(&settings, "a", &[model, version]).unwrap();
    assert_eq!((resolved.instances, resolved.warmup), (2, 7));
    assert_eq!((resolved.batching.max_batch_size, resolved.batching.max_queue_size), (4, 9));
    assert_eq!((resolved.device, resolved.format), (DeviceSpec::Cpu, Some(Format::Torchscript)));
    assert_eq!((resolved.name.as_str(), resolved.path), ("a", None));
    assert_eq!(resolve_model_files(&settings, "mlp", &[]).unwrap().format, None);
}

#[test]
fn a_model_file_may_not_say_what_its_folder_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.toml");
    let settings = read("").unwrap();
    let error = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let message =
            resolve_model_files(&settings, "a", std::slice::from_ref(&file)).unwrap_err().to_string();
        message.replace(file.to_str().unwrap(), "model.toml")
    };
    let said = "cannot be set here: the folders of the model repository say it";
    for (text, expected) in [
        ("path = 'x'", format!("1: `path` {said}")),
        ("\nversions = 'all'", format!("2: `versions` {said}")),
        (
            "format = 'builtin'",
            "1: `format` is \"builtin\", but a model of the repository has files of its own".to_owned(),
        ),
        ("instance = 1", "1: unknown key `instance`; did you mean `instances`?".to_owned()),
        (
            "batching.dispatch = 'eager'\nbatching.mode = 'fixed'",
            "1: `batching.dispatch` is \"eager\", but mode is \"fixed\" (model.toml:2): a fixed batch waits \
             for its window"
                .to_owned(),
        ),
    ] {
        assert_eq!(error(text), format!("model.toml:{expected}"));
    }
    assert_eq!(
        resolve_model_files(&settings, "a b", &[]).unwrap_err().to_string(),
        "model \"a b\": \"a b\" is not a name: it may have letters, digits, `-`, `_` and `.`, and starts with \
         a letter or a digit"
    );
}
