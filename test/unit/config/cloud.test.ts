import test from 'ava';
import {loadConfig, rankAddresses} from '../../../src/config/index.ts';
import {bundleFiles, hostWith, memoryReader, problemsOf} from './sources.ts';

const host = hostWith({eth0: ['10.0.0.5'], eth1: ['10.0.1.5']});
const load = (argv: Record<string, string>, keptCloudAddress?: (stateDir: string) => string | undefined) =>
	loadConfig({argv, env: {}, host: {...host, keptCloudAddress}, files: memoryReader(bundleFiles('autoregister'))});

test('cloud › its service is of this machine and its host', t => {
	t.deepEqual(load({}).config.cloud, {mode: 'auto', waitMs: 2000, endpoint: 'http://169.254.169.254'});
	for (const good of ['http://127.0.0.1:8080', 'http://[fd00:ec2::254]', 'http://169.254.169.254:80/'])
		t.notThrows(() => load({'workload-cloud-endpoint': good}));
	for (const bad of [
		'http://10.0.0.1',
		'https://169.254.169.254',
		'http://metadata',
		'http://127.0.0.1@evil',
		'http://127.0.0.1.evil',
		'http://169.254.999.1',
		'http://127.0.0.1:99999',
		'http://127.0.0.1/x',
	])
		t.is(problemsOf(() => load({'workload-cloud-endpoint': bad})).length, 1, bad);
});

test('cloud › the rule metadata takes the address it names, if this machine has it', t => {
	const rules = [{kind: 'metadata'}] as const;
	const first = (cloudAddress?: () => string | undefined) =>
		rankAddresses({...host, ...(cloudAddress && {cloudAddress})}, {rules, towards: []})[0];
	t.like(
		first(() => '10.0.1.5'),
		{address: '10.0.1.5', why: 'as the cloud says'},
	);
	for (const none of [() => '203.0.113.1', () => undefined, undefined]) t.is(first(none)?.address, '10.0.0.5');
});

test('cloud › a start takes the address that was kept', t => {
	const argv = {'workload-address-from': 'metadata', 'state-dir': '/s'};
	t.is(load(argv, stateDir => (stateDir === '/s' ? '10.0.1.5' : undefined)).config.workload.addresses[0], '10.0.1.5');
	t.is(load(argv).config.workload.addresses[0], '10.0.0.5');
});
