import {spawnSync} from 'node:child_process';
import {mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {makeSlots} from '../../../src/proxy/slot.ts';
import {
	renderUnitStart,
	type UnitStartInput,
	unitScriptPath,
	withdrawUnitStart,
	writeUnitStart,
} from '../../../src/proxy/unit-files.ts';
import {proxyConfig} from '../../integration/proxy/world.ts';

const folder = (t: {teardown(end: () => void): void}): string => {
	const path = mkdtempSync(join(tmpdir(), 'onramp-unit-'));
	t.teardown(() => rmSync(path, {recursive: true, force: true}));
	return path;
};

const inputFor = (path: string, more: Partial<UnitStartInput> = {}): UnitStartInput => ({
	config: proxyConfig(path, {binaryPath: '/usr/lib/onramp/envoy'}),
	addresses: ['198.18.0.11'],
	refusedFlags: [],
	bootstrap: '{}\n',
	delaySeconds: 0,
	...more,
});

test('unit start › names the bootstrap after all that an Envoy is started with', t => {
	const path = folder(t);
	const of = (more: Partial<UnitStartInput>) => renderUnitStart(inputFor(path, more)).bootstrapPath;
	const usual = of({});
	t.is(of({}), usual, 'the same input, the same name');
	t.is(of({delaySeconds: 10}), usual, 'how long it waits says nothing of the Envoy');
	const others = [
		of({bootstrap: '{"node":{}}\n'}),
		of({refusedFlags: ['--skip-deprecated-logs']}),
		of({config: proxyConfig(path, {binaryPath: '/usr/local/bin/envoy'})}),
		of({config: proxyConfig(path, {binaryPath: '/usr/lib/onramp/envoy', concurrency: 7})}),
	];
	t.is(new Set([usual, ...others]).size, 5);
});

test('unit start › the script runs Envoy with each argument as it is, and keeps what it says in the log', t => {
	const path = folder(t);
	const binaryPath = join(path, "en'voy");
	writeFileSync(binaryPath, '#!/bin/sh\nfor each; do echo "<$each>"; done\necho oops >&2\n', {mode: 0o755});
	const config = proxyConfig(path, {binaryPath, extraArguments: ['--x', 'a b $HOME `id`', "it's"]});
	const start = renderUnitStart(inputFor(path, {config}));
	writeUnitStart({name: 'a', config, bootstrap: '{}\n'}, start);
	const {status} = spawnSync('/bin/sh', [unitScriptPath({name: 'a', config})]);
	t.is(status, 0);
	const errorLog = join(path, 'envoy.err');
	const said = readFileSync(errorLog, 'utf8').trim().split('\n');
	t.deepEqual(said.slice(0, 2), ['<-c>', `<${start.bootstrapPath}>`]);
	t.deepEqual(said.slice(-4), ['<--x>', '<a b $HOME `id`>', "<it's>", 'oops']);
	// The next start keeps it, and nothing else.
	writeFileSync(binaryPath, '#!/bin/sh\necho again >&2\n');
	spawnSync('/bin/sh', [unitScriptPath({name: 'a', config})]);
	t.is(readFileSync(errorLog, 'utf8'), 'again\n');
	t.deepEqual(readFileSync(`${errorLog}.1`, 'utf8').trim().split('\n'), said);
});

test('unit start › is written once, and takes the bootstraps of earlier ones away', t => {
	const path = folder(t);
	const binaryPath = join(path, 'envoy');
	writeFileSync(binaryPath, '#!/bin/sh\n', {mode: 0o755});
	const config = proxyConfig(path, {binaryPath});
	for (const bootstrap of ['{"a":1}\n', '{"a":2}\n'])
		writeUnitStart({name: 'a', config, bootstrap}, renderUnitStart(inputFor(path, {config, bootstrap})));
	const {bootstrapPath} = renderUnitStart(inputFor(path, {config, bootstrap: '{"a":2}\n'}));
	t.is(readFileSync(bootstrapPath, 'utf8'), '{"a":2}\n');
	t.deepEqual(
		readdirSync(path).toSorted(),
		['envoy', bootstrapPath.slice(path.length + 1), 'start-a'].toSorted(),
		'nothing else is left',
	);
});

test('unit start › the two slots have scripts and bootstraps of their own', t => {
	const path = folder(t);
	const binaryPath = join(path, 'envoy');
	writeFileSync(binaryPath, '#!/bin/sh\n', {mode: 0o755});
	const [first, second] = makeSlots(
		proxyConfig(path, {binaryPath}),
		({adminSocketPath}) => `{"a":"${adminSocketPath}"}\n`,
	);
	for (const {name, config, bootstrap} of [first, second, first])
		writeUnitStart({name, config, bootstrap}, renderUnitStart(inputFor(path, {config, bootstrap})));
	const names = readdirSync(path).map(each => each.replace(/[0-9a-f]{16}/, 'X'));
	t.deepEqual(names.toSorted(), ['envoy', 'envoy-X.json', 'envoy-b-X.json', 'start-a', 'start-b']);
	withdrawUnitStart(first);
	t.deepEqual(
		readdirSync(path).filter(each => each.startsWith('start')),
		['start-b'],
	);
});

test('unit start › a binary that is not there is told, and nothing is written that a unit would run', t => {
	const path = folder(t);
	const config = proxyConfig(path);
	t.throws(() => writeUnitStart({name: 'a', config, bootstrap: '{}\n'}, renderUnitStart(inputFor(path, {config}))), {
		code: 'proxy.binary_missing',
	} as object);
	t.deepEqual(readdirSync(path), []);
});
