// Tests of driver.js, run by node: `make test`. What the driver imports of the host is stood in for here.

import assert from 'node:assert/strict';
import { register } from 'node:module';
import test from 'node:test';

const code = (text) => `data:text/javascript,${encodeURIComponent(text)}`;
const settings = code('export const get = (key) => globalThis.operator[key] ?? null;');
register(
  code(`export const resolve = (name, context, next) =>
    name.startsWith('wasmvol:driver/settings@')
      ? { url: ${JSON.stringify(settings)}, shortCircuit: true }
      : next(name, context);`),
);
const { volumes } = await import('./driver.js');

const ID = '0123456789abcdef0123456789abcdef';

// Options as the host gives them: by type, and defaults filled in.
function options({ size, inodes, exec = false, mode = '1777' } = {}) {
  return [
    { key: 'exec', value: { tag: 'boolean', val: exec } },
    { key: 'inodes', value: { tag: 'number', val: inodes } },
    { key: 'mode', value: { tag: 'text', val: mode } },
    { key: 'size', value: { tag: 'size', val: size } },
  ].filter(({ value }) => value.val !== undefined);
}

// A volume as it comes back to `path`.
function made(given, operator = {}) {
  globalThis.operator = operator;
  const created = volumes.create(ID, 'data', options(given));
  assert.deepEqual(volumes.create(ID, 'data', options(given)), created);
  assert.deepEqual(created.storage, { tag: 'none' });
  return { id: ID, name: 'data', options: options(given), state: created.state };
}

function refused(given, operator = {}) {
  try {
    made(given, operator);
  } catch (error) {
    return error.payload;
  }
  assert.fail('it was made');
}

test('a volume has the size and the limits that were asked for', () => {
  const plan = volumes.path(made({ size: 1 << 20, inodes: 100, exec: true, mode: '0750' }));
  const owner = { uid: 0, gid: 0, mode: 0o750 };
  assert.deepEqual(plan, {
    source: { tag: 'tmpfs', val: { size: 1 << 20, inodes: 100, owner } },
    readOnly: false,
    noExec: false,
    subpath: null,
    idMap: null,
  });
});

test('a volume without size gets what the operator has set', () => {
  for (const [operator, size] of [
    [{}, 64 << 20],
    [{ default: '4096' }, 4096],
    [{ ceiling: '8k' }, 8192],
    [{ ceiling: '8192', default: '16384' }, 8192],
  ]) {
    const plan = volumes.path(made({}, operator));
    assert.equal(plan.source.val.size, size);
    assert.equal(plan.noExec, true);
  }
});

test('a setting is written as an option is', () => {
  for (const [text, size] of [
    ['512b', 512],
    ['64k', 64 << 10],
    ['64K', 64 << 10],
    ['64kb', 64 << 10],
    ['64KiB', 64 << 10],
    ['10MB', 10 << 20],
    ['1G', 1 << 30],
    ['2TiB', 2 * 1024 ** 4],
    // Not 2^64, which the host could not take.
    ['18446744073709551615', 2 ** 64 - 2048],
  ]) {
    const volume = made({}, { ceiling: '18446744073709551615', default: text });
    assert.equal(volumes.path(volume).source.val.size, size);
  }
});

test('a volume keeps the size that it was made with', () => {
  const old = made({}, { default: '4096' });
  globalThis.operator = { default: '8192' };
  assert.equal(volumes.path(old).source.val.size, 4096);
});

test('an error says what to do', () => {
  for (const [given, message] of [
    [{ size: 0 }, 'option `size`: must be at least 1 byte'],
    [{ size: 4097 }, "option `size`: the operator's ceiling is 4096 bytes"],
    [{ inodes: 0 }, 'option `inodes` must be at least 1: `0`'],
    [{ mode: '9' }, 'option `mode` must be octal and at most 7777, as in `0755`: `9`'],
    [{ mode: '+7' }, 'option `mode` must be octal and at most 7777, as in `0755`: `+7`'],
  ]) {
    assert.deepEqual(refused(given, { ceiling: '4096' }), { code: 'invalid-option', message });
  }
});

test('a setting that cannot be read is the operator’s to mend', () => {
  const units = ['1x', 'm', '1.5g', '1 g', '1ib', 'kib', '1\u212a', '1\n', '16777216t'];
  for (const ceiling of ['', '0', '-1', ...units, '18446744073709551616']) {
    const { code, message } = refused({}, { ceiling });
    assert.equal(code, 'internal');
    assert.match(message, /^setting `ceiling` must be a size/);
  }
});

test('a state of another driver’s is refused', () => {
  for (const state of [[], [120], new Uint8Array(65536)]) {
    const volume = { id: ID, name: 'data', options: options(), state: Uint8Array.from(state) };
    assert.throws(() => volumes.path(volume), (error) => error.payload.code === 'internal');
  }
});
