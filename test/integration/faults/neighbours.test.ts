import {once} from 'node:events';
import {chmod, copyFile, symlink, writeFile} from 'node:fs/promises';
import {createServer, type Server} from 'node:net';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import {
	complaints,
	gateOf,
	group,
	joinedState,
	listFiles,
	listKept,
	makeWorld,
	processesOf,
	spoken,
	untilClosed,
	type World,
} from './world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

async function occupy(port: number): Promise<Server> {
	const server = createServer();
	server.listen(port, '127.0.0.1');
	await once(server, 'listening');
	return server;
}

const release = (server: Server) => new Promise(resolve => server.close(resolve));

test('faults › group › a missing WorkloadGroup is told once with who creates it, and made later it registers the VM', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	world.sandbox.removeWorkloadGroup(group.namespace, group.name);
	const workload = await world.workload({bundle});
	workload.start();

	const gate = await untilClosed(workload, 'registration', /WorkloadGroup faults\/vm does not exist/);
	t.regex(gate.reason, /^ADS stream at istiod\.istio-system\.svc:\d+: /);
	t.regex(gate.hint!, /kubectl -n faults get workloadgroup; create vm/);
	const {gates} = await workload.until('a certificate', report => gateOf(report, 'identity').open);
	t.is(gates.find(({name}) => name === 'registration')!.open, false, 'the certificate does not depend on it');
	t.is(complaints(workload).length, 1, complaints(workload).join('\n'));
	t.regex(
		complaints(workload)[0]!,
		/error relay: control plane connection failed reason=".*code=control_plane.group_missing hint=/,
	);
	t.deepEqual(world.sandbox.workloadEntries(), []);

	world.sandbox.addWorkloadGroup(group);
	await workload.untilReady();
	t.deepEqual(
		world.sandbox.workloadEntries().map(({name}) => name),
		['vm-127.0.0.1'],
	);
});

test('faults › ports › the status port in use ends the agent with 1, naming who has it, and a restart helps', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	const occupant = await occupy(workload.ports.status);
	t.teardown(() => release(occupant));
	workload.start();
	t.is(await workload.exit, 1);
	const lines = spoken(workload.log());
	t.is(lines.length, 2, workload.log());
	const start = `onramp: listen for status on 127.0.0.1:${workload.ports.status}: port is in use by `;
	t.is(lines[0]!.slice(0, start.length), start);
	t.regex(lines[0]!.slice(start.length), new RegExp(`^\\S+ \\(pid ${process.pid}\\)$`));
	t.regex(lines[1]!, /^ {2}→ stop what listens there \(ss -ltnp .*\), or set status.port to another port$/);
	t.deepEqual(complaints(workload), []);
	t.deepEqual(await listFiles(workload.stateDir), [], 'nothing is begun');
	t.deepEqual(processesOf(workload.runDir), []);

	await release(occupant);
	workload.start();
	await workload.untilReady();
});

for (const [purpose, flag] of [
	['readiness', 'readiness'],
	['metrics', 'metrics'],
] as const) {
	test(`faults › ports › Envoy's ${purpose} port in use is told once and waited for, and freed it starts`, async t => {
		const {world} = t.context;
		const workload = await world.workload({bundle: await world.bundle()});
		const port = workload.ports[flag];
		const occupant = await occupy(port);
		t.teardown(() => release(occupant));
		workload.start();
		const gate = await untilClosed(
			workload,
			'proxy',
			new RegExp(`^start envoy: port ${port} for ${purpose} is taken by \\S+ \\(pid ${process.pid}\\)$`),
		);
		t.regex(gate.hint!, new RegExp(`stop it, or give envoy another port; .*:${port}`));
		// Everything else goes on meanwhile.
		await workload.until(
			'registered',
			report => gateOf(report, 'registration').open && gateOf(report, 'identity').open,
		);
		await workload.until('looked at again', ({uptimeS}) => uptimeS >= 2);
		t.is(complaints(workload).length, 1, complaints(workload).join('\n'));
		t.regex(complaints(workload)[0]!, /error proxy: envoy cannot be started; .*code=proxy.port_in_use hint=/);
		t.is(workload.envoyPid(), undefined);

		await release(occupant);
		await workload.untilReady();
	});
}

test('faults › envoy › one that is missing is told once and waited for, and put in place it starts', async t => {
	const {world} = t.context;
	const envoyPath = join(world.directory, 'envoy');
	const workload = await world.workload({bundle: await world.bundle(), envoyPath});
	workload.start();
	const gate = await untilClosed(workload, 'proxy', new RegExp(`^start envoy: there is no ${envoyPath}$`));
	t.regex(gate.hint!, /install Envoy 1\.\d+ or later there, or say where it is with proxy\.binary/);
	await workload.until('looked at again', ({uptimeS}) => uptimeS >= 2);
	t.is(complaints(workload).length, 1, complaints(workload).join('\n'));
	await symlink(world.envoyPath, envoyPath);
	await workload.untilReady();
	t.deepEqual(await listKept(workload.stateDir), joinedState);
});

test('faults › envoy › a VM that is ten seconds without one leaves the mesh, says so, and is back with it', async t => {
	const {world} = t.context;
	const envoyPath = join(world.directory, 'envoy');
	const workload = await world.workload({bundle: await world.bundle(), envoyPath});
	workload.start();
	await workload.until('registered', report => gateOf(report, 'registration').open);
	const gate = await untilClosed(workload, 'registration', /^this agent has ended its stream/);
	t.regex(gate.hint!, /look at the gate proxy/);
	const {state, entry} = (await workload.status()).parts['registration'] as Record<string, unknown>;
	t.deepEqual([state, entry], ['withdrawn', 'faults/vm-127.0.0.1']);
	t.deepEqual(world.sandbox.connections(), []);
	const disconnected = world.sandbox.workloadEntries().map(({annotations}) => annotations['istio.io/disconnectedAt']);
	t.true(
		disconnected.every(at => at !== undefined),
		'istiod is to delete it',
	);

	await symlink(world.envoyPath, envoyPath);
	const {parts} = await workload.untilReady();
	t.is((parts['registration'] as {state: string}).state, 'registered');
});

for (const [title, content, mode, reason, hint] of [
	['not executable', '#!/bin/sh\n', 0o644, /not executable by this user$/, /chmod a\+rx/],
	['a text file', 'not a program\n', 0o755, /it is not a program$/, /install Envoy again/],
	['for another processor', foreignProgram(), 0o755, /it is built for another processor$/, /Envoy build for/],
] as const) {
	test(`faults › envoy › one that is ${title} is told once and waited for`, async t => {
		const {world} = t.context;
		const envoyPath = join(world.directory, 'envoy');
		await writeFile(envoyPath, content, {mode});
		const workload = await world.workload({bundle: await world.bundle(), envoyPath});
		workload.start();
		const gate = await untilClosed(workload, 'proxy', reason);
		t.true(gate.reason.startsWith(`start envoy: cannot run ${envoyPath}: `));
		t.regex(gate.hint!, hint);
		await workload.until('registered', report => gateOf(report, 'registration').open);
		t.is(complaints(workload).length, 1, complaints(workload).join('\n'));
	});
}

/** The head of an ELF file for SPARC. */
function foreignProgram(): Buffer {
	const head = Buffer.alloc(64);
	head.write('\x7fELF\x02\x01\x01', 'latin1');
	head.writeUInt16LE(2, 16);
	head.writeUInt16LE(43, 18);
	return head;
}

test('faults › envoy › one made executable later starts', async t => {
	const {world} = t.context;
	const envoyPath = join(world.directory, 'envoy');
	await copyFile(world.envoyPath, envoyPath);
	await chmod(envoyPath, 0o644);
	const workload = await world.workload({bundle: await world.bundle(), envoyPath});
	workload.start();
	await untilClosed(workload, 'proxy', /not executable by this user$/);
	await chmod(envoyPath, 0o755);
	t.true((await workload.untilReady()).ready);
});

test('faults › envoy › one that is too old ends the agent with 78, naming its version, and is ended itself', async t => {
	const {world} = t.context;
	const envoyPath = join(world.directory, 'envoy');
	await writeFile(envoyPath, oldEnvoy(), {mode: 0o755});
	const workload = await world.workload({bundle: await world.bundle(), envoyPath});
	workload.start();
	t.is(await workload.exit, 78);
	const lines = spoken(workload.log());
	t.deepEqual(lines, [`onramp: start envoy: ${envoyPath} is version 1.30.2`, '  → install Envoy 1.36 or later']);
	t.deepEqual(processesOf(workload.runDir), []);
});

/** A program that says on its admin socket, as Envoy 1.30 does, what it is. */
function oldEnvoy(): string {
	return `#!${process.execPath}
const {readFileSync} = require('node:fs');
const bootstrap = JSON.parse(readFileSync(process.argv[process.argv.indexOf('-c') + 1], 'utf8'));
const {path} = bootstrap.admin.address.pipe;
const info = {version: 'aaaa/1.30.2/Clean/RELEASE/BoringSSL', state: 'INITIALIZING'};
require('node:http').createServer((request, response) => {
	response.end(JSON.stringify(info));
	if (request.url.startsWith('/quitquitquit')) process.exit(0);
}).listen(path);
`;
}

test('faults › two agents › the second on one state directory ends with 1, naming the first, which goes on', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const first = await world.workload({bundle});
	first.start();
	await first.untilReady();
	const before = await listKept(first.stateDir);

	const second = await world.workload({bundle, flags: ['--state-dir', first.stateDir]});
	second.start();
	t.is(await second.exit, 1);
	const lines = spoken(second.log());
	t.is(lines.length, 2, second.log());
	t.is(lines[0], `onramp: lock ${first.stateDir}/identity/lock: held by the process with pid ${first.pid}`);
	t.regex(
		lines[1]!,
		new RegExp(
			`^ {2}→ another agent uses ${first.stateDir}/identity: stop it .*, or give this one its own state directory$`,
		),
	);
	t.deepEqual(complaints(second), []);
	t.deepEqual(processesOf(second.runDir), []);
	t.deepEqual(await listFiles(first.stateDir), before);
	t.true((await first.status()).ready);
});

test('faults › two agents › the second on one run directory ends with 1, and the first keeps its sockets', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const first = await world.workload({bundle});
	first.start();
	await first.untilReady();

	const second = await world.workload({bundle, flags: ['--run-dir', first.runDir]});
	second.start();
	t.is(await second.exit, 1);
	t.regex(
		spoken(second.log()).join('\n'),
		/^onramp: open control socket \S+: another agent answers there\n {2}→ .*systemctl stop onramp$/,
	);
	t.true((await first.status()).ready);
	t.deepEqual(await listFiles(second.stateDir), []);
});
