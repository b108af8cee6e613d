import {readFile, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import {startSandbox} from '../../../src/sandbox/index.ts';
import {enterOwnNetwork} from '../../support/own-network.ts';
import {complaints, emptyState, listFiles, makeWorld, spoken, untilClosed, type World} from './world.ts';

// Where that is permitted: no question for a name leaves this machine.
enterOwnNetwork();

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

/** A file of the bundle, damaged; what is said of it after its path. */
interface Damage {
	readonly title: string;
	readonly file: 'cluster.env' | 'mesh.yaml' | 'hosts';
	/** Undefined takes the file away. */
	readonly damage: (content: string) => string | Buffer | undefined;
	readonly says: RegExp;
}

const binary = Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0xff]);

const damages: readonly Damage[] = [
	{
		title: 'cluster.env missing',
		file: 'cluster.env',
		damage: () => undefined,
		says: /^: this file of the bundle is missing; copy the whole bundle again$/,
	},
	{
		title: 'cluster.env cut short',
		file: 'cluster.env',
		damage: text => text.slice(0, text.indexOf('ISTIO_METAJSON_LABELS') + 40),
		says: /^:\d+: the value of ISTIO_METAJSON_LABELS has a quote that is never closed; the file may be cut short: copy it again$/,
	},
	{
		title: 'cluster.env binary',
		file: 'cluster.env',
		damage: () => binary,
		says: /^:1: is binary: it holds a NUL byte; copy the file again/,
	},
	{
		title: 'cluster.env hostile, with a command in it',
		file: 'cluster.env',
		damage: text => `${text}PATH_$(touch /tmp/onramp-hostile)='x'\n`,
		says: /^:\d+: .+; .+$/,
	},
	{
		title: 'mesh.yaml missing',
		file: 'mesh.yaml',
		damage: () => undefined,
		says: /^: this file of the bundle is missing; copy the whole bundle again$/,
	},
	{
		title: 'mesh.yaml cut short',
		file: 'mesh.yaml',
		damage: text => `${text.slice(0, text.indexOf('proxyMetadata'))}proxyMeta`,
		says: /^:\d+: .+; .+$/,
	},
	{
		title: 'mesh.yaml binary',
		file: 'mesh.yaml',
		damage: () => binary,
		says: /^:1: is binary: it holds a NUL byte; copy the file again/,
	},
	{
		title: 'hosts binary',
		file: 'hosts',
		damage: () => binary,
		says: /^:1: is binary: it holds a NUL byte; copy the file again/,
	},
	{
		title: 'mesh.yaml hostile, doubling with each alias',
		file: 'mesh.yaml',
		damage: () =>
			Array.from({length: 30}, (_, i) => `k${i}: &a${i} [${i > 0 ? `*a${i - 1}, *a${i - 1}` : 'x'}]`).join('\n'),
		says: /^:\d+: uses more than \d+ aliases; write plain YAML$/,
	},
	{
		title: 'mesh.yaml hostile, nested without end',
		file: 'mesh.yaml',
		damage: () => `defaultConfig: ${'['.repeat(100_000)}`,
		says: /^:\d+: .+; .+$/,
	},
	{
		title: 'mesh.yaml hostile, larger than any bundle',
		file: 'mesh.yaml',
		damage: () => `# ${'x'.repeat(8 * 1024 * 1024)}\n`,
		says: /^(:\d+)?: .*(large|bytes).*; .+$/,
	},
];

for (const {title, file, damage, says} of damages) {
	test(`faults › bundle › ${title}: run and join end with 78, say so once, and touch nothing`, async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		const path = join(bundle, file);
		const content = damage(await readFile(path, 'utf8'));
		await (content === undefined ? rm(path) : writeFile(path, content));

		const target = join(world.directory, 'installed');
		for (const command of [
			['run', '--bundle', bundle],
			['join', bundle, '--install-to', target],
		]) {
			const {code, stderr} = await world.cli([...command, ...(await world.places())]);
			const lines = spoken(stderr);
			t.is(code, 78, stderr);
			t.is(lines.length, 1, stderr);
			const start = `onramp: read configuration: ${path}`;
			t.is(lines[0]!.slice(0, start.length), start);
			t.regex(lines[0]!.slice(start.length), says);
			t.true(lines[0]!.length < 500, 'a person has to read it');
		}
		for (const untouched of ['installed', 'state', 'run']) {
			t.deepEqual(await listFiles(join(world.directory, untouched)), [], untouched);
		}
		t.deepEqual(await listFiles('/tmp/onramp-hostile'), []);
	});
}

test('faults › bundle › hosts missing is told with the line it needs and waited for, and the agent joins with it', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const path = join(bundle, 'hosts');
	const good = await readFile(path, 'utf8');
	await rm(path);
	const workload = await world.workload({bundle});
	workload.start();
	const gate = await untilClosed(
		workload,
		'identity',
		/^no certificate yet: look up control plane istiod\.istio-system\.svc:\d+: no address found$/,
	);
	t.regex(gate.hint!, /add "ADDRESS istiod\.istio-system\.svc" to the bundle's hosts file/);
	await untilClosed(workload, 'registration', /istiod\.istio-system\.svc:\d+: no address found/);
	t.is(complaints(workload, 'relay').length, 1, complaints(workload).join('\n'));
	t.deepEqual(await listFiles(workload.stateDir), emptyState);

	await writeFile(path, good);
	t.is(await workload.stop(), 0);
	workload.start();
	await workload.untilReady();
});

const anotherRoot = async (): Promise<string> => {
	const other = await startSandbox();
	await other.stop();
	return other.rootPem();
};

const roots: readonly {
	title: string;
	damage: (pem: string) => Promise<string | Buffer | undefined>;
	reason: RegExp;
	join: RegExp;
}[] = [
	{
		title: 'of another mesh',
		damage: anotherRoot,
		reason:
			/^no certificate yet: connect to \S+: its certificate is not signed by any root in \S+\/root-cert.pem \([^)]*\)$/,
		join: /^$/,
	},
	{
		title: 'missing',
		damage: async () => undefined,
		reason: /^no certificate yet: read root certificate \S+\/root-cert.pem: ENOENT/,
		join: /root-cert.pem: the root certificate is missing\n {4}→ copy root-cert.pem again/,
	},
	{
		title: 'cut short',
		damage: async pem => pem.slice(0, 300),
		reason: /^no certificate yet: read root certificate \S+\/root-cert.pem: no PEM certificate in it$/,
		join: /root-cert.pem: a root certificate is cut short\n {4}→ copy root-cert.pem again/,
	},
	{
		title: 'binary',
		damage: async () => binary,
		reason: /^no certificate yet: read root certificate \S+\/root-cert.pem: no PEM certificate in it$/,
		join: /root-cert.pem: root certificate: there is no PEM certificate in the file\n {4}→ copy root-cert.pem again/,
	},
];

for (const {title, damage, reason, join: joinSays} of roots) {
	test(`faults › bundle › a root certificate ${title} is told and waited for; the agent joins when it is mended`, async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		const path = join(bundle, 'root-cert.pem');
		const good = await readFile(path, 'utf8');
		const content = await damage(good);
		await (content === undefined ? rm(path) : writeFile(path, content));

		if (joinSays.source !== '^$') {
			// What a look at the file shows, join refuses before it touches anything.
			const target = join(world.directory, 'installed');
			const {code, stderr} = await world.cli(['join', bundle, '--install-to', target, ...(await world.places())]);
			t.is(code, 78);
			t.regex(stderr, joinSays);
			t.deepEqual(await listFiles(target), []);
		}

		const workload = await world.workload({bundle});
		workload.start();
		const gate = await untilClosed(workload, 'identity', reason);
		t.regex(gate.hint!, /onramp join BUNDLE/);
		await untilClosed(workload, 'registration', /root-cert.pem/);
		t.is(complaints(workload).filter(line => line.includes('relay:')).length, 1);
		t.deepEqual(await listFiles(workload.stateDir), emptyState);
		t.is(world.sandbox.counts.issuedByToken, 0);

		await writeFile(path, good);
		await workload.untilReady();
	});
}
