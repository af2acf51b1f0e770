// Memory with a ceiling: `docker volume create -d wasmvol -o driver=example-javascript -o size=64m data`.
//
// The operator sets the ceiling, and what a volume gets whose user asked for no size. Every call is answered by an instance of its own:
// what must be remembered are the volume's options, and the bytes that `create` returned as its state.

import { get } from 'wasmvol:driver/settings@0.1.0';

// Most bytes of a volume, and what one gets without `size`, unless the operator has set others.
const CEILING = 1024 ** 3;
const DEFAULT = 64 * 1024 ** 2;
// The largest number below 2^64: numbers have 53 bits.
const LARGEST = 2 ** 64 - 2 ** 11;

export const volumes = {
  describe() {
    return {
      name: 'example-javascript',
      version: '0.1.0',
      help: "memory, up to the operator's ceiling",
      options: [
        option('size', 'size', 'most bytes; without it what the operator has set'),
        option('inodes', 'number', 'most files and directories'),
        option('exec', 'boolean', 'programs may run from it', 'false'),
        option('mode', 'text', 'permission bits, octal', '1777'),
      ],
      grants: [],
    };
  },

  create(id, name, options) {
    const ceiling = setting('ceiling', CEILING);
    const size = values(options).size ?? Math.min(setting('default', DEFAULT), ceiling);
    if (size === 0) {
      // The kernel would take it for "no limit".
      throw refused('option `size`: must be at least 1 byte');
    }
    if (size > ceiling) {
      throw refused(`option \`size\`: the operator's ceiling is ${ceiling} bytes`);
    }
    // The operator may set another default later: this volume keeps what it was made with.
    const state = Uint8Array.from(String(size), (digit) => digit.charCodeAt(0));
    // What could not be mounted later is refused now.
    volumes.path({ id, name, options, state });
    return { storage: { tag: 'none' }, state };
  },

  remove(volume) {
    return 'delete';
  },

  path(volume) {
    const { inodes = null, exec, mode } = values(volume.options);
    if (inodes !== null && inodes < 1) {
      throw refused(`option \`inodes\` must be at least 1: \`${inodes}\``);
    }
    const owner = { uid: 0, gid: 0, mode: bits(mode) };
    return {
      source: { tag: 'tmpfs', val: { size: sizeOf(volume.state), inodes, owner } },
      readOnly: false,
      noExec: !exec,
      subpath: null,
      idMap: null,
    };
  },

  list() {
    // Its volumes live in the host's records alone.
    return [];
  },
};

function option(key, valueType, help, fallback = null) {
  return { key, valueType, required: false, default: fallback, help };
}

// The values of a volume's options by key, as the host has parsed them; one without value and default is left out.
function values(options) {
  return Object.fromEntries(options.map(({ key, value }) => [key, value.val]));
}

// A size that the operator wrote with `driver load --setting KEY=SIZE` or `driver set`.
function setting(key, fallback) {
  const text = get(key);
  if (text === null) {
    return fallback;
  }
  // As in an option: `64m`, `64MB` and `64MiB` are the same.
  const written = /^([0-9]+)(?:b|([kmgt])(?:i?b)?)?$/i.exec(text);
  if (written !== null) {
    const [, count, unit = ''] = written;
    const power = ['', 'k', 'm', 'g', 't'].indexOf(unit.toLowerCase());
    const size = BigInt(count) * 1024n ** BigInt(power);
    if (size > 0n && size < 2n ** 64n) {
      return Math.min(Number(size), LARGEST);
    }
  }
  const why = 'must be a size of at least 1 byte, such as `64m`';
  throw failed(
    'internal',
    `setting \`${key}\` ${why}: the operator can mend it with \`wasmvol driver set NAME ${key}=SIZE\``,
  );
}

function sizeOf(state) {
  const text = Array.from(state, (byte) => String.fromCharCode(byte)).join('');
  if (/^[0-9]+$/.test(text)) {
    return Number(text);
  }
  throw failed('internal', "the volume's state was not written by this driver");
}

function bits(text) {
  if (/^0*[0-7]{1,4}$/.test(text)) {
    return parseInt(text, 8);
  }
  throw refused(`option \`mode\` must be octal and at most 7777, as in \`0755\`: \`${text}\``);
}

function refused(message) {
  return failed('invalid-option', message);
}

function failed(code, message) {
  return { payload: { code, message } };
}
