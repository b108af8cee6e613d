import {execFile} from 'node:child_process';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test from 'ava';
import {type BootstrapInput, renderBootstrap} from '../../../src/proxy/index.ts';
import {ensureEnvoy} from '../../support/envoy.ts';
import {input} from '../../unit/proxy/bootstrap-input.ts';

const validated = test.macro({
	title: (_, what) => `bootstrap › envoy takes it: ${what}`,
	async exec(t, _what: string, change: (input: BootstrapInput) => BootstrapInput) {
		const folder = await mkdtemp(join(tmpdir(), 'onramp-bootstrap-'));
		t.teardown(() => rm(folder, {recursive: true}));
		const path = join(folder, 'envoy.json');
		await writeFile(path, JSON.stringify(renderBootstrap(change(input))));
		const {stdout} = await promisify(execFile)(await ensureEnvoy(), ['--mode', 'validate', '-l', 'warn', '-c', path]);
		t.regex(stdout, /OK/);
	},
});

test(validated, 'delta ADS', it => it);
test(validated, 'state of the world', it => ({...it, config: {...it.config, adsProtocol: 'sotw'}}));
test(validated, 'the IPv6 wildcard', it => ({...it, config: {...it.config, listenAddress: '::'}}));
test(validated, 'no status port', it => ({...it, statusPort: 0}));
