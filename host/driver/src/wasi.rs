//! What every driver may import of WASI, with the limits that its implementation leaves to its host.
//!
//! Used by `contract`, for all lines alike. Most of it is wasmtime's own. What stands here in its place does the same, and lets no driver
//! have the host remember more than it should.

use std::fs::{DirEntry, ReadDir};
use std::io;
use std::os::fd::AsRawFd;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler::Host as _;
use wasmtime_wasi_http::p2::bindings::http::types::{Host as _, HostOutgoingRequest as _, Method};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;

use crate::call::State;

/// Longest method of a request.
const METHOD_MAX: usize = 32;
/// Longest host and port of a request: a name has at most 253 bytes.
const AUTHORITY_MAX: usize = 300;
/// Longest path and query of a request: servers take no more.
pub(crate) const PATH_MAX: usize = 8 << 10;

/// Offers all of it.
pub(crate) fn offer(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    bound_requests(linker)?;
    bound_listings(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A request's texts are kept until it is sent, and a driver may have many that it never sends.
fn bound_requests(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Request = Resource<HostOutgoingRequest>;
    type Context<'a> = StoreContextMut<'a, State>;
    let fits = |text: &Option<String>, most| text.as_ref().is_none_or(|text| text.len() <= most);
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut context: Context<'_>, (request, method): (Request, Method)| {
            let is_long = matches!(&method, Method::Other(name) if name.len() > METHOD_MAX);
            if is_long {
                context.data().http.note_too_long("method", METHOD_MAX);
                return Ok((Err(()),));
            }
            Ok((context.data_mut().http().set_method(request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        move |mut context: Context<'_>, (request, authority): (Request, Option<String>)| {
            if !fits(&authority, AUTHORITY_MAX) {
                context.data().http.note_too_long("authority", AUTHORITY_MAX);
                return Ok((Err(()),));
            }
            Ok((context.data_mut().http().set_authority(request, authority)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        move |mut context: Context<'_>, (request, path): (Request, Option<String>)| {
            if !fits(&path, PATH_MAX) {
                context.data().http.note_too_long("path", PATH_MAX);
                return Ok((Err(()),));
            }
            Ok((context.data_mut().http().set_path_with_query(request, path)?,))
        },
    )?;
    let mut handler = linker.instance("wasi:http/outgoing-handler@0.2.12")?;
    handler.func_wrap(
        "handle",
        |mut context: Context<'_>, (request, options): (Request, Option<Resource<_>>)| {
            let http = &mut context.data_mut().http();
            // wasmtime writes a line into the log for one that has none.
            http.table.get_mut(&request)?.path_with_query.get_or_insert_with(|| "/".to_owned());
            let sent = http.handle(request, options);
            Ok((sent.map(Ok).or_else(|error| http.convert_error_code(error).map(Err))?,))
        },
    )
}

/// A directory that is being read. Its entries come piece by piece, however many there are.
struct Listing(ReadDir);

/// wasmtime's own would hold every entry in memory, in each of the listings that a driver may have.
fn bound_listings(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:filesystem/types@0.2.12")?;
    types.resource(
        "directory-entry-stream",
        ResourceType::host::<Listing>(),
        |mut context, listing| {
            context.data_mut().ctx().table.delete(Resource::<Listing>::new_own(listing))?;
            Ok(())
        },
    )?;
    types.func_wrap(
        "[method]descriptor.read-directory",
        |mut context: StoreContextMut<'_, State>, (directory,): (Resource<Descriptor>,)| {
            let table = context.data_mut().ctx().table;
            let Descriptor::Dir(directory) = table.get(&directory)? else {
                return Ok((Err(ErrorCode::NotDirectory),));
            };
            let path = format!("/proc/self/fd/{}", directory.dir.as_raw_fd());
            match std::fs::read_dir(path) {
                Ok(entries) => Ok((Ok(table.push(Listing(entries))?),)),
                Err(error) => Ok((Err(error.into()),)),
            }
        },
    )?;
    types.func_wrap(
        "[method]directory-entry-stream.read-directory-entry",
        |mut context: StoreContextMut<'_, State>, (listing,): (Resource<Listing>,)| {
            let Listing(entries) = context.data_mut().ctx().table.get_mut(&listing)?;
            Ok((entries.next().map(entry).transpose(),))
        },
    )
}

fn entry(entry: io::Result<DirEntry>) -> Result<DirectoryEntry, ErrorCode> {
    let entry = entry?;
    let name = entry.file_name().into_string().map_err(|_| ErrorCode::IllegalByteSequence)?;
    let kind = entry.file_type()?;
    let type_ = if kind.is_dir() {
        DescriptorType::Directory
    } else if kind.is_symlink() {
        DescriptorType::SymbolicLink
    } else if kind.is_file() {
        DescriptorType::RegularFile
    } else {
        DescriptorType::Unknown
    };
    Ok(DirectoryEntry { type_, name })
}
