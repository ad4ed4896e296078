//! The image: its final stage, built from a static binary of this machine, and what runs in it, as
//! nobody and with nothing that can be written.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::dns::NameServer;
use crate::support::process::{Killed, Running};
use crate::support::tls_origin::TlsOrigin;
use crate::support::{Client, Origin, PATIENCE, numbered};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The binary that is tested, static as that of the image: so `tests/run` builds everything.
fn static_binary() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_iris-sidecar"));
    // A program that is not names who is to load it.
    let bytes = std::fs::read(&built).unwrap();
    let is_dynamic = bytes.windows(10).any(|part| part == b"/ld-linux-");
    assert!(
        !is_dynamic,
        "run tests/run, or cargo test --config docker/static.toml --target …"
    );
    built
}

/// A built image, with what it says of itself.
struct Image {
    /// Its files, as a runtime would lay them out.
    files: PathBuf,
    config: serde_json::Value,
    _folder: tempfile::TempDir,
}

fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Image {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let context = folder.path().join("context");
        let image = context.join("image");
        let copy = |from: &Path, to: &str| {
            let to = image.join(to);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        };
        copy(&static_binary(), "usr/bin/iris-sidecar");
        let of_repository = Path::new(ROOT).join("docker/image/etc/nsswitch.conf");
        copy(&of_repository, "etc/nsswitch.conf");
        let roots = "etc/ssl/certs/ca-certificates.crt";
        copy(&Path::new("/").join(roots), roots);
        std::fs::create_dir(context.join("state")).unwrap();
        let text = std::fs::read_to_string(Path::new(ROOT).join("docker/Dockerfile")).unwrap();
        let (_, last) = text.split_once("\nFROM scratch\n").unwrap();
        let last = last
            .replace("COPY --from=build ", "COPY ")
            .replace(" /image /", " image /");
        let last = last.replace("--chown=65532:65532 /state", "--chown=65532:65532 state");
        std::fs::write(context.join("Dockerfile"), format!("FROM scratch\n{last}")).unwrap();
        let place = folder.path().join("storage");
        let buildah = || {
            let mut command = Command::new("buildah");
            command
                .args(["--storage-driver", "vfs", "--root"])
                .arg(&place);
            command.arg("--runroot").arg(folder.path().join("run"));
            command
        };
        let arguments = [
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--tag",
            "iris",
        ];
        let commit = ["--build-arg", "IRIS_COMMIT=0123abcd"];
        done(buildah().args(arguments).args(commit).arg(&context));
        let told = done(buildah().args(["inspect", "--type", "image", "iris"]));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let container = done(buildah().args(["from", "iris"]));
        let files = done(buildah().args(["mount", &container])).into();
        Self {
            files,
            config: told["Docker"]["config"].clone(),
            _folder: folder,
        }
    }

    /// A process in it, as a runtime starts one: as the image's user, its root not to be written,
    /// with these variables, these files in the place of others, and this folder as its
    /// configuration.
    fn command(&self, variables: &[(&str, &str)], resolver: &Path, config: &Path) -> Command {
        let files = self.files.display();
        // What a runtime makes: the places of what it mounts.
        for name in ["proc", "etc/iris-sidecar"] {
            std::fs::create_dir_all(self.files.join(name)).unwrap();
        }
        for name in ["etc/resolv.conf", "etc/hosts"] {
            std::fs::write(self.files.join(name), "127.0.0.1 localhost\n").unwrap();
        }
        let script = format!(
            "mount --bind {files} {files} && mount -t proc proc {files}/proc \
             && mount --bind {} {files}/etc/resolv.conf \
             && mount --bind -o ro {} {files}/etc/iris-sidecar \
             && mount -o remount,bind,ro {files} \
             && exec chroot --userspec={} {files} \"$@\"",
            resolver.display(),
            config.display(),
            self.config["User"].as_str().unwrap(),
        );
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ]);
        let program = self.config["Entrypoint"].as_array().unwrap();
        command.args(program.iter().filter_map(|part| part.as_str()));
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap());
        for set in self.config["Env"].as_array().unwrap() {
            let (name, value) = set.as_str().unwrap().split_once('=').unwrap();
            if name != "PATH" {
                command.env(name, value);
            }
        }
        command.envs(variables.iter().copied());
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_is_one_program_that_runs_as_nobody_and_writes_nothing() {
    let image = Image::build();
    let config = &image.config;
    assert_eq!(config["User"], "65532:65532", "{config}");
    assert_eq!(config["StopSignal"], "SIGTERM");
    let check = config["Healthcheck"]["Test"].clone();
    assert_eq!(
        check,
        serde_json::json!(["CMD", "/usr/bin/iris-sidecar", "health"])
    );
    let variables = config["Env"].as_array().unwrap();
    assert!(
        variables.contains(&"IRIS_DEFAULT_ADDRESS=[::]:8080".into()),
        "{config}"
    );
    for (name, value) in [
        ("title", "iris-sidecar"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", "0123abcd"),
        ("licenses", "MIT"),
    ] {
        let label = format!("org.opencontainers.image.{name}");
        assert_eq!(config["Labels"][&label], value, "{config}");
    }
    // Beside the program: roots, and where names are looked up. No shell.
    let listed = done(Command::new("find").arg(&image.files).args(["-type", "f"]));
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    let files = image.files.display();
    let expected = [
        "etc/nsswitch.conf",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/bin/iris-sidecar",
    ];
    assert_eq!(listed, expected.map(|name| format!("{files}/{name}")));
    let linked = Command::new("ldd").arg(static_binary()).output().unwrap();
    let linked = [linked.stdout, linked.stderr].concat();
    let linked = String::from_utf8(linked).unwrap();
    assert!(linked.contains("statically linked"), "{linked}");

    let names = NameServer::start()
        .await
        .expect("port 53 of an address of loopback is free");
    names.say(Some(&["127.0.0.1"]));
    names.know_only("api.shop.svc.test");
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let tls = TlsOrigin::start().await;
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    let search = format!("{}search svc.test shop.svc.test\n", names.resolver());
    std::fs::write(&resolver, search).unwrap();
    let mounted = folder.path().join("config");
    std::fs::create_dir(&mounted).unwrap();
    std::fs::write(mounted.join("ca.pem"), &tls.root).unwrap();
    let write = |ttl: &str| {
        let text = format!(
            "[upstream.other]\nurl = \"https://localhost:{}\"\nca_file \
                = \"/etc/iris-sidecar/ca.pem\"\n[[route]]\npath = \"/other\"\nupstream \
                = \"other\"\n[[route]]\npath = \"/{{*rest}}\"\nttl = \"{ttl}\"\n",
            tls.port
        );
        std::fs::write(mounted.join("iris.toml"), text).unwrap();
    };
    write("30s");
    let api = format!("http://api:{}", origin.address.port());
    let variables = [
        ("IRIS_CONFIG", "/etc/iris-sidecar/iris.toml"),
        ("IRIS_UPSTREAM_URL", api.as_str()),
        ("IRIS_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_ADMIN_ADDRESS", "127.0.0.1:0"),
    ];
    let mut running = Running::launched(image.command(&variables, &resolver, &mounted));
    let process = running.child.0.id();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    assert!(
        status.contains("Uid:\t65532\t65532\t65532\t65532"),
        "{status}"
    );
    let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let of_root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"));
    assert!(of_root.unwrap().contains(" / ro,"), "{mounts}");

    let mut client = Client::connect(running.address).await;
    for expected in ["MISS", "HIT"] {
        let answer = client.ask("GET", "/a", &[]).await;
        assert_eq!(
            (answer.status, answer.cache()),
            (200, expected),
            "{}",
            answer.text()
        );
    }
    let secret = client.ask("GET", "/other", &[]).await;
    assert_eq!((secret.status, secret.text().as_str()), (200, "secret"));
    // A changed file is seen where it is mounted.
    write("70s");
    running.signal("HUP");
    let fresh = async {
        for number in 0.. {
            let answer = client.ask("GET", &format!("/{number}"), &[]).await;
            if answer.cache_status().contains("stored") && {
                let again = client.ask("GET", &format!("/{number}"), &[]).await;
                again.cache_status().contains("ttl=70")
            } {
                return;
            }
        }
    };
    let reloaded = tokio::time::timeout(PATIENCE, fresh).await;
    reloaded.expect("it is read again");
    let admin = running.admin.to_string();
    let asked = [("IRIS_ADMIN_ADDRESS", admin.as_str())];
    let mut health = image.command(&asked, &resolver, &mounted);
    assert!(health.arg("health").status().unwrap().success());
    running.signal("TERM");
    let Killed(child) = &mut running.child;
    assert!(child.wait().unwrap().success());
}
