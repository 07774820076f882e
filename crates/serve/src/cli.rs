//! The command line: its flags, and the one-shot commands that need no server.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Document, Override, Settings};
use crate::simulate::SimulateArgs;

/// Parses either form of a command line: with `serve` or without.
#[derive(Debug, Parser)]
#[command(
    name = "trustformers-serve",
    version,
    about = "An inference server on LibTorch that batches requests well",
    long_about = "An inference server on LibTorch that batches requests well.\n\n\
        Alone it serves the built-in models on http://127.0.0.1:8000. Settings come from flags, \
        then from environment variables (TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE=64), then from \
        the file, then from defaults; --print-config shows each with its source.",
    after_help = EXAMPLES
)]
struct CommandLine {
    #[command(flatten)]
    cli: Cli,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  trustformers-serve
  trustformers-serve --config serve.toml --port 9000
  trustformers-serve --set batching.max_batch_size=64 --set models.minilm.device=cpu
  trustformers-serve --config serve.toml --print-config";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP, which is also what happens without a command
    #[command(after_help = EXAMPLES)]
    Serve(Cli),
    /// Try settings under a load that is not there: the same scheduler on a virtual clock
    Simulate(Box<SimulateArgs>),
}

/// What the user asked for.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct Cli {
    /// Configuration file (TOML); relative paths in it start at its own folder
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address to listen on [default: 127.0.0.1]; same as --set server.host=HOST
    #[arg(long)]
    pub host: Option<String>,

    /// Port to listen on, 0 for a free one [default: 8000]; same as --set server.port=PORT
    #[arg(short, long)]
    pub port: Option<u16>,

    /// One setting by its dotted key, for example batching.max_batch_size=64; may be repeated, the
    /// last of one key wins
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// How log lines look [default: text]; same as --set logging.format=FORMAT
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: Option<String>,

    /// Check the configuration and exit
    #[arg(long, group = "action")]
    pub validate: bool,

    /// Load the models, run their warm-up, and exit
    #[arg(long, group = "action")]
    pub dry_run: bool,

    /// Print the resolved configuration with the source of each value, and exit
    #[arg(long, group = "action")]
    pub print_config: bool,

    /// List the models that would be served, and exit
    #[arg(long, group = "action")]
    pub list_models: bool,

    /// Load one model, describe its inputs and outputs, and exit
    #[arg(long, value_name = "NAME", group = "action")]
    pub model_info: Option<String>,

    /// Ask the server that runs with this configuration whether it is ready, and exit
    #[arg(long, group = "action")]
    pub health_check: bool,

    /// The options of `simulate`, where that is the command.
    #[arg(skip)]
    pub simulate: Option<Box<SimulateArgs>>,
}

/// What a command line is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run the server.
    Serve,
    /// `--validate`
    Validate,
    /// `--dry-run`
    DryRun,
    /// `--print-config`
    PrintConfig,
    /// `--list-models`
    ListModels,
    /// `--model-info` with the model's name
    ModelInfo(String),
    /// `--health-check`
    HealthCheck,
    /// `simulate`
    Simulate(Box<SimulateArgs>),
}

impl Cli {
    /// Reads a command line, the program's name first. `--help` and `--version` are "errors" too:
    /// [`clap::Error::exit`] treats each as it should be.
    pub fn parse_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let CommandLine { cli, command } = CommandLine::try_parse_from(args)?;
        match command {
            None => Ok(cli),
            Some(Command::Serve(rest)) => cli.followed_by(rest),
            Some(Command::Simulate(args)) => {
                let (config, set) = (args.config.clone(), args.set.clone());
                let after = Cli { config, set, simulate: Some(args.clone()), ..Cli::default() };
                let all = cli.followed_by(after)?;
                let args = SimulateArgs { config: all.config.clone(), set: all.set.clone(), ..*args };
                Ok(Cli { simulate: Some(Box::new(args)), ..all })
            }
        }
    }

    /// Flags before the command and flags after it, as if they stood together.
    fn followed_by(self, rest: Cli) -> Result<Self, clap::Error> {
        if self.action() != Action::Serve && rest.action() != Action::Serve {
            return Err(clap::Error::raw(
                clap::error::ErrorKind::ArgumentConflict,
                "only one of the flags that check something and exit can be used\n",
            ));
        }
        Ok(Cli {
            config: rest.config.or(self.config),
            host: rest.host.or(self.host),
            port: rest.port.or(self.port),
            set: self.set.into_iter().chain(rest.set).collect(),
            log_format: rest.log_format.or(self.log_format),
            validate: self.validate || rest.validate,
            dry_run: self.dry_run || rest.dry_run,
            print_config: self.print_config || rest.print_config,
            list_models: self.list_models || rest.list_models,
            model_info: self.model_info.or(rest.model_info),
            health_check: self.health_check || rest.health_check,
            simulate: rest.simulate,
        })
    }

    /// What to do; at most one of the flags is given.
    pub fn action(&self) -> Action {
        if let Some(args) = &self.simulate {
            return Action::Simulate(args.clone());
        }
        match &self.model_info {
            Some(name) => Action::ModelInfo(name.clone()),
            None if self.validate => Action::Validate,
            None if self.dry_run => Action::DryRun,
            None if self.print_config => Action::PrintConfig,
            None if self.list_models => Action::ListModels,
            None if self.health_check => Action::HealthCheck,
            None => Action::Serve,
        }
    }

    /// The settings that these flags, `env` and the file make together. A flag of its own, such as
    /// `--port`, wins over a `--set` of the same key.
    pub fn settings(&self, env: impl IntoIterator<Item = (String, String)>) -> Result<Settings, ConfigError> {
        let document = self.config.as_deref().map(Document::read).transpose()?;
        let mut overrides: Vec<Override> = self.set.iter().map(Override::set).collect();
        let port = self.port.map(|port| port.to_string());
        for (flag, key, value) in [
            ("--host", "server.host", self.host.as_deref()),
            ("--port", "server.port", port.as_deref()),
            ("--log-format", "logging.format", self.log_format.as_deref()),
        ] {
            overrides.extend(value.map(|value| Override::flag(flag, key, value)));
        }
        Settings::resolve(document.as_ref(), env, &overrides)
    }

    /// The line that `--validate` prints about settings that resolved.
    pub fn validation_line(&self, settings: &Settings) -> String {
        let what =
            self.config.as_ref().map_or("the configuration".to_owned(), |path| path.display().to_string());
        let names: Vec<&str> = settings.models.keys().map(String::as_str).collect();
        let mut models = match names.len() {
            0 => "no models of its own".to_owned(),
            1 => format!("model {}", names[0]),
            _ => format!("models {}", names.join(", ")),
        };
        if let Some(repository) = &settings.model_repository {
            models.push_str(&format!(", repository {}", repository.display()));
        }
        format!("{what} is valid: {models}, on {}:{}", settings.server.host, settings.server.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let args = std::iter::once("trustformers-serve").chain(line.split_whitespace());
        Cli::parse_args(args.map(OsString::from))
    }

    fn env(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn definitions_are_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn nothing_means_serving() {
        assert_eq!(parse("").unwrap(), Cli::default());
        assert_eq!(parse("").unwrap().action(), Action::Serve);
        assert_eq!(parse("serve").unwrap(), Cli::default());
    }

    #[test]
    fn every_action_has_its_flag() {
        for (line, action) in [
            ("--validate", Action::Validate),
            ("--dry-run", Action::DryRun),
            ("--print-config", Action::PrintConfig),
            ("--list-models", Action::ListModels),
            ("--model-info bert", Action::ModelInfo("bert".to_owned())),
            ("--health-check", Action::HealthCheck),
        ] {
            assert_eq!(parse(line).unwrap().action(), action);
            assert_eq!(parse(&format!("serve {line}")).unwrap().action(), action);
            assert_eq!(parse(&format!("{line} serve")).unwrap().action(), action);
        }
    }

    #[test]
    fn two_actions_contradict() {
        for line in ["--validate --dry-run", "--validate serve --dry-run"] {
            assert_eq!(parse(line).unwrap_err().kind(), clap::error::ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn flags_before_and_after_serve_stand_together() {
        assert_eq!(
            parse("--set a=1 --port 1 --host h serve --set b=2 --port 2").unwrap(),
            parse("--set a=1 --set b=2 --host h --port 2").unwrap()
        );
    }

    #[test]
    fn flags_before_simulate_are_its_own_too() {
        let before = parse("--set a=1 --config f simulate --rate 5 --set b=2").unwrap();
        assert_eq!(before, parse("simulate --config f --set a=1 --set b=2 --rate 5").unwrap());
        let Action::Simulate(args) = before.action() else { panic!("{before:?}") };
        assert_eq!((args.rate, args.set), (Some(5.0), vec!["a=1".to_owned(), "b=2".to_owned()]));
        let error = parse("--validate simulate --rate 5").unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("serve.toml");
        std::fs::write(
            &file,
            "[server]\nhost = 'a'\nport = 1\nworkers = 1\n[logging]\nformat = 'text'\nlevel = 'warn'",
        )
        .unwrap();
        let environment = env(&[
            ("TRUSTFORMERS_SERVE__SERVER__HOST", "b"),
            ("TRUSTFORMERS_SERVE__SERVER__PORT", "2"),
            ("TRUSTFORMERS_SERVE__SERVER__WORKERS", "2"),
        ]);
        let line = format!(
            "--config {} --host c --set server.port=3 --set server.port=4 --log-format json",
            file.display()
        );
        let settings = parse(&line).unwrap().settings(environment).unwrap();
        assert_eq!(settings.server.host, "c");
        assert_eq!(settings.server.port, 4);
        assert_eq!(settings.server.workers, 2);
        assert_eq!(settings.logging.format, crate::config::LogFormat::Json);
        assert_eq!(settings.logging.level, crate::config::LogLevel::Warn);
    }

    #[test]
    fn a_flag_of_its_own_wins_over_set() {
        let settings = parse("--port 1 --set server.port=2").unwrap().settings([]).unwrap();
        assert_eq!(settings.server.port, 1);
    }

    #[test]
    fn a_host_is_text_even_when_it_looks_like_something_else() {
        let settings = parse("--host ::1").unwrap().settings([]).unwrap();
        assert_eq!(settings.server.host, "::1");
        let settings = parse("--host 10").unwrap().settings([]).unwrap();
        assert_eq!(settings.server.host, "10");
    }

    #[test]
    fn validation_says_what_would_be_served_and_where() {
        let line = |text: &str| {
            let cli = parse(text).unwrap();
            cli.validation_line(&cli.settings([]).unwrap())
        };
        assert_eq!(
            line("--validate"),
            "the configuration is valid: models delay, minilm, mlp, resnet18, tinylm, on 127.0.0.1:8000"
        );
        assert_eq!(
            line("--validate --port 0 --set model_repository=repo"),
            "the configuration is valid: no models of its own, repository repo, on 127.0.0.1:0"
        );
        assert_eq!(
            line("--validate --set models.delay.instances=2"),
            "the configuration is valid: model delay, on 127.0.0.1:8000"
        );
    }

    #[test]
    fn what_is_wrong_names_the_flag() {
        let error = parse("--set server.prot=1").unwrap().settings([]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "flag --set server.prot=1: unknown key `server.prot`; did you mean `server.port`?"
        );
        assert_eq!(parse("--log-format xml").unwrap_err().kind(), clap::error::ErrorKind::InvalidValue);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = parse("--config /nowhere/serve.toml").unwrap().settings([]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nowhere/serve.toml: cannot be read: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn help_and_version_are_answered() {
        use clap::error::ErrorKind;
        assert_eq!(parse("--help").unwrap_err().kind(), ErrorKind::DisplayHelp);
        assert_eq!(parse("--version").unwrap_err().kind(), ErrorKind::DisplayVersion);
        let help = parse("--help").unwrap_err().to_string();
        for part in ["--config <FILE>", "--set <KEY=VALUE>", "TRUSTFORMERS_SERVE__", "Examples:", "serve"] {
            assert!(help.contains(part), "{part} is not in\n{help}");
        }
    }
}
