import test from 'ava';
import {planKeptFlags, refuseWhatServiceIgnores} from '../../../src/cli/join/kept-flags.ts';
import {keptPathOf, loadConfig, renderConfig} from '../../../src/config/index.ts';
import {bundleFiles, host, memoryReader} from '../config/sources.ts';

const config = '/etc/onramp/onramp.yaml';
const own = '/etc/onramp/bundle';
const bundle = bundleFiles('plain');

const load = (files: Record<string, string>, argv = {}, env = {}) =>
	loadConfig({argv, env, host, files: memoryReader({...bundle, ...files})});

test('kept flags › are read by an agent that is given none, below onramp.yaml', t => {
	const {path, content, changed} = planKeptFlags(
		{name: 'vm-9', 'proxy-concurrency': '3', envoy: '/opt/envoy', json: true},
		config,
		own,
		memoryReader({}),
	);
	t.is(path, keptPathOf(config));
	t.deepEqual(changed.toSorted(), ['proxy.binary', 'proxy.concurrency', 'workload.name']);
	const loaded = load({[path]: content!, [config]: 'proxy:\n  concurrency: 8\n'});
	t.is(loaded.config.workload.name, 'vm-9');
	t.is(loaded.config.proxy.binaryPath, '/opt/envoy');
	t.is(loaded.config.proxy.concurrency, 8);
	t.regex(renderConfig(loaded, 'yaml'), /name: vm-9 {2}# file \/etc\/onramp\/join\.yaml:\d+/);
});

test('kept flags › of an earlier join stay, and the same again is no change', t => {
	const first = planKeptFlags({name: 'a', group: 'g'}, config, own, memoryReader({}));
	const disk = memoryReader({[first.path]: first.content!});
	t.is(planKeptFlags({}, config, own, disk).content, undefined);
	t.is(planKeptFlags({name: 'a'}, config, own, disk).content, undefined);
	const next = planKeptFlags({name: 'b'}, config, own, disk);
	t.deepEqual([next.changed, next.inherited], [['workload.name'], ['workload.group']]);
	t.regex(next.content!, /name: b\n {2}group: g/);
});

test('kept flags › a bundle at another place is found there', t => {
	const {path, content} = planKeptFlags({}, config, '/srv/bundle', memoryReader({}));
	const moved = Object.fromEntries(
		Object.entries(bundle).map(([name, text]) => [name.replace(own, '/srv/bundle'), text]),
	);
	const {config: loaded} = loadConfig({argv: {}, env: {}, host, files: memoryReader({...moved, [path]: content!})});
	t.is(loaded.controlPlane.tokenPath, '/srv/bundle/istio-token');
});

test('kept flags › what a service would not see is refused by name: variables, and what onramp.yaml has otherwise', t => {
	const argv = {name: 'by-flag'};
	const {path, content} = planKeptFlags(argv, config, own, memoryReader({}));
	const files = {[path]: content!, [config]: 'workload:\n  name: by-file\n'};
	const wanted = load(files, argv, {ONRAMP_LOG_LEVEL: 'debug'});
	t.throws(() => refuseWhatServiceIgnores(wanted, load(files)), {
		message:
			/--name: the service would not see it; for workload\.name it has \/etc\/onramp\/onramp\.yaml:2\n {2}ONRAMP_LOG_LEVEL: the service would not see it; for log\.level it has the default/,
	});
	t.notThrows(() => refuseWhatServiceIgnores(load({[path]: content!}, argv), load({[path]: content!})));
});
