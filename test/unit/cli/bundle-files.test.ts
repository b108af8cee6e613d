import {execFileSync} from 'node:child_process';
import {
	chmodSync,
	existsSync,
	lstatSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	rmSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from 'node:fs';
import {basename, join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {bundleFiles, install, isSameToken, planInstall} from '../../../src/cli/join/bundle-files.ts';
import {AgentError} from '../../../src/errors.ts';
import {directoryWith} from './command.ts';

function makeBundle(t: ExecutionContext) {
	const directory = directoryWith(t);
	const source = join(directory, 'source');
	mkdirSync(source);
	for (const name of bundleFiles) writeFileSync(join(source, name), `content of ${name}\n`, {mode: 0o744});
	return {source, target: join(directory, 'target')};
}

const modeOf = (path: string): string => (statSync(path).mode & 0o777).toString(8);

test('bundle files › are all installed, for no others to read, and the same again is no change', async t => {
	const {source, target} = makeBundle(t);
	const changes = await planInstall(source, target);
	t.is(basename(changes.at(-1)!.path), 'istio-token', 'last, as it is what wakes a waiting agent');
	await install(target, changes);
	t.deepEqual(readdirSync(target).sort(), [...bundleFiles].sort());
	t.is(modeOf(target), '750');
	for (const name of bundleFiles) {
		t.is(modeOf(join(target, name)), '640');
		t.is(readFileSync(join(target, name), 'utf8'), `content of ${name}\n`);
	}
	t.deepEqual(await planInstall(source, target), []);
	t.true(isSameToken(source, target));
});

test.serial('bundle files › can be read by the agent whatever the umask of who joins', async t => {
	const {source, target} = makeBundle(t);
	const before = process.umask(0o077);
	t.teardown(() => process.umask(before));
	await install(target, await planInstall(source, target));
	t.is(modeOf(target), '750');
	t.is(modeOf(join(target, 'mesh.yaml')), '640');
});

test('bundle files › that differ are replaced, and the others are left as they are', async t => {
	const {source, target} = makeBundle(t);
	await install(target, await planInstall(source, target));
	const {ino} = statSync(join(target, 'mesh.yaml'));
	writeFileSync(join(source, 'istio-token'), 'another');
	t.false(isSameToken(source, target));
	const changes = await planInstall(source, target);
	t.deepEqual(
		changes.map(({path}) => basename(path)),
		['istio-token'],
	);
	await install(target, changes);
	t.is(readFileSync(join(target, 'istio-token'), 'utf8'), 'another');
	t.is(statSync(join(target, 'mesh.yaml')).ino, ino);
});

test('bundle files › that are open to others are mended, with their directory', async t => {
	const {source, target} = makeBundle(t);
	await install(target, await planInstall(source, target));
	chmodSync(join(target, 'istio-token'), 0o644);
	chmodSync(target, 0o755);
	const changes = await planInstall(source, target);
	t.deepEqual(changes, [{path: join(target, 'istio-token'), content: 'same'}]);
	await install(target, changes);
	t.deepEqual([modeOf(join(target, 'istio-token')), modeOf(target)], ['640', '750']);
});

test('bundle files › of an earlier bundle that the new one has not are removed', async t => {
	const {source, target} = makeBundle(t);
	await install(target, await planInstall(source, target));
	rmSync(join(source, 'hosts'));
	await install(target, await planInstall(source, target));
	t.false(existsSync(join(target, 'hosts')));
});

test('bundle files › replace a link rather than write through it', async t => {
	const {source, target} = makeBundle(t);
	mkdirSync(target);
	const elsewhere = join(target, '..', 'elsewhere');
	writeFileSync(elsewhere, 'untouched');
	symlinkSync(elsewhere, join(target, 'cluster.env'));
	await install(target, await planInstall(source, target));
	t.is(readFileSync(elsewhere, 'utf8'), 'untouched');
	t.false(lstatSync(join(target, 'cluster.env')).isSymbolicLink());
});

test('bundle files › leave nothing behind when one cannot be written', async t => {
	const {source, target} = makeBundle(t);
	const changes = await planInstall(source, target);
	mkdirSync(join(target, 'cluster.env', 'in-the-way'), {recursive: true});
	const error = await t.throwsAsync<AgentError>(install(target, changes), {instanceOf: AgentError});
	t.is(error.code, 'config.unreadable');
	t.deepEqual(readdirSync(target), ['cluster.env']);
});

test('bundle files › with a FIFO in the place of one are refused at once', async t => {
	const {source, target} = makeBundle(t);
	rmSync(join(source, 'hosts'));
	execFileSync('mkfifo', [join(source, 'hosts')]);
	await t.throwsAsync(planInstall(source, target), {message: /not a regular file/});
	t.false(existsSync(target));
});
