//! Volumes that start as a checkout or as an unpacked archive: `docker volume create -d wasmvol -o driver=git -o
//! repository=https://git.example/team/site -o ref=v2 site`.
//!
//! What is fetched is written once, when the volume is made; from then on it is a directory like any other.

use std::fs::{self, File};
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use git_fetch::{Files, check_out, check_url, fetch, resolve, unpack};
use wasmvol_sdk::{
    Created, Description, Driver, Error, ErrorCode, OptionSpec, Plan, Populated, Population,
    Result, Storage, Volume, export_driver, http, log, make_link, secrets,
};

/// The options that say where from; a volume has one of them.
const SOURCES: [&str; 2] = ["repository", "archive"];
/// How many leading directories of an archive may be left out.
const STRIP: RangeInclusive<usize> = 0..=32;
/// What a command to a git server is sent as.
const COMMAND: &str = "application/x-git-upload-pack-request";

/// The driver.
#[derive(Debug)]
pub struct Git;

impl Driver for Git {
    fn describe() -> Description {
        Description::new(
            "git",
            env!("CARGO_PKG_VERSION"),
            "directories that start as a checkout or an archive",
        )
        .option(OptionSpec::text(
            "repository",
            "URL of a git repository: its files, without history",
        ))
        .option(OptionSpec::text("ref", "branch, tag or commit of the repository").default("HEAD"))
        .option(OptionSpec::text("archive", "URL of a .tar or .tar.gz instead"))
        .option(
            OptionSpec::number("strip", "leading directories of the archive that are left out")
                .default("0"),
        )
        .option(OptionSpec::secret("secret", "secret with USER:PASSWORD for the server"))
        .option(OptionSpec::size(
            "size",
            "most bytes of the directory, where the disk has project quotas",
        ))
        .owner("0755")
        .grant("http=ORIGIN")
    }

    fn create(volume: &Volume) -> Result<Created> {
        let given: Vec<_> = SOURCES.into_iter().filter(|key| volume.has(key)).collect();
        let [source] = given[..] else {
            return Err(Error::new(
                ErrorCode::InvalidOption,
                "give one of `repository` and `archive`",
            ));
        };
        let url = volume.text(source)?;
        check_url(url, volume.has("secret")).map_err(|why| Error::invalid_option(source, why))?;
        volume.number_in("strip", STRIP)?;
        Ok(Storage::limited_directory(volume.owner()?, volume.if_given("size", Volume::size)?)
            .into())
    }

    fn path(_: &Volume) -> Result<Plan> {
        Ok(Plan::storage())
    }
}

impl Population for Git {
    fn populate(volume: &Volume, directory: &Path) -> Result<Populated> {
        let Some(url) = volume.if_given("repository", Volume::text)? else {
            let answer = answered(volume, http::get(volume.text("archive")?))?;
            let files = unpack(answer, volume.number_in("strip", STRIP)?, directory);
            return filled(files.map(|files| (Vec::new(), files)), directory);
        };
        let mut refused = None;
        let mut ask = |path: &str, body: Option<Vec<u8>>| {
            let url = format!("{}{path}", url.trim_end_matches('/'));
            let request = match body {
                Some(body) => http::post(url).header("content-type", COMMAND).body(body),
                None => http::get(url),
            };
            let sent = answered(volume, request.header("git-protocol", "version=2"));
            // Its code would be lost on the way.
            let sent =
                sent.map_err(|e| git_fetch::Error::Server(refused.insert(e).message.clone()));
            Ok(Box::new(sent?) as Box<dyn Read>)
        };
        let fetched = resolve(&mut ask, volume.text("ref")?).and_then(|commit| {
            let pack = directory.join(".pack");
            let file = File::options().read(true).write(true).create_new(true).open(&pack)?;
            // Its name goes at once, the file with this call.
            fs::remove_file(&pack)?;
            let mut objects = fetch(&mut ask, commit, file)?;
            Ok((commit.to_string().into(), check_out(&mut objects, commit, directory)?))
        });
        match refused {
            Some(error) => Err(error),
            None => filled(fetched, directory),
        }
    }
}

/// What was fetched and written, with its links; the state is what it was.
fn filled(
    fetched: std::result::Result<(Vec<u8>, Files), git_fetch::Error>,
    directory: &Path,
) -> Result<Populated> {
    let (state, files) = fetched.map_err(|error| match error {
        git_fetch::Error::Io(error) => error.into(),
        error => Error::new(ErrorCode::Unavailable, error.to_string()),
    })?;
    if files.submodules > 0 {
        log::warn!("submodules are not fetched: {} directories stay empty", files.submodules);
    }
    files.links.iter().try_for_each(|(path, target)| make_link(directory, path, target))?;
    Ok(Populated { state, executables: files.executables })
}

/// Sends a request, with the password if the volume has one, and takes only what was meant.
fn answered(volume: &Volume, mut request: http::Request) -> Result<http::Response> {
    if let Some(name) = volume.if_given("secret", Volume::secret)? {
        request = request.basic_auth(secrets::reveal(name)?);
    }
    let response = request.send()?;
    let why = match response.status {
        200 => return Ok(response),
        401 | 403 => "the server wants another user or password: keep it with `wasmvol secret set`, and name it by `-o secret=`".to_owned(),
        404 => "the server has nothing there: look at the URL".to_owned(),
        300..=399 => {
            let to = response.header("location").unwrap_or("another place");
            format!("the server moved it to `{to}`: use that URL")
        }
        status => format!("the server answered with status {status}"),
    };
    Err(Error::new(ErrorCode::Unavailable, why))
}

export_driver!(Git: population);
