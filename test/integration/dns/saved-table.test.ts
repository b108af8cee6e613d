import {execFile} from 'node:child_process';
import {Resolver} from 'node:dns/promises';
import {stat} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test from 'ava';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {startMesh} from '../../support/mesh.ts';
import {replyWith, startFakeServer} from '../../unit/dns/world.ts';

const resolverOf = ({ports}: LocalWorkload): Resolver => {
	const resolver = new Resolver({timeout: 2000, tries: 5});
	resolver.setServers([`127.0.0.1:${ports.dns}`]);
	return resolver;
};

async function lookup({options, flags}: LocalWorkload, ...args: string[]): Promise<string> {
	const command = [options.agentPath, 'dns', 'lookup', ...args, ...flags];
	const {stdout} = await promisify(execFile)(process.execPath, command, {env: {PATH: process.env['PATH'] ?? ''}});
	return stdout;
}

test('dns › names of the mesh are answered, also after a restart with the control plane away', async t => {
	const upstream = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.7']));
	const mesh = await startMesh(t, {flags: ['--dns-upstreams', `127.0.0.1:${upstream.port}`]});
	const vm = mesh.workload('vm');
	const name = 'http-cluster.mesh.svc.cluster.local';
	const [address] = await resolverOf(vm).resolve4(name);
	t.regex(address!, /^240\.240\./);
	t.deepEqual(await resolverOf(vm).resolve4('www.example.com'), ['192.0.2.7']);
	t.regex(await lookup(vm, name), new RegExp(`source: mesh .*\\n${name} 30 A ${address}\\n$`));
	t.regex(await lookup(vm, 'www.example.com'), /source: upstream .*\nasked: {2}127\.0\.0\.1:\d+: NOERROR/);
	await t.throwsAsync(lookup(vm, 'typo.mesh.svc.cluster.local'), {message: /dns lookup/});

	await vm.stop();
	await mesh.sandbox.stop();
	t.is((await stat(join(vm.stateDir, 'dns', 'names'))).mode & 0o777, 0o600);
	vm.start();
	await vm.until('answers names', ({parts}) => parts['dns'] !== undefined);
	t.deepEqual(await resolverOf(vm).resolve4(name), [address!]);
	t.deepEqual(await resolverOf(vm).resolve4('www.example.com'), ['192.0.2.7']);
	const {parts} = await vm.status();
	t.like(parts['dns'], {table: 'saved', mode: 'capture'});
	t.deepEqual([...new Set(upstream.asked)], ['www.example.com']);
});
