import {readFileSync} from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import {parseClusterEnv} from '../../../src/config/cluster-env.ts';
import {loadConfig} from '../../../src/config/index.ts';
import {parseMeshYaml} from '../../../src/config/mesh-yaml.ts';
import {FileFindings, Findings} from '../../../src/config/problems.ts';
import {decodeText} from '../../../src/config/text-file.ts';
import {findTokenFault} from '../../../src/config/token-shape.ts';
import {AgentError} from '../../../src/errors.ts';
import {anyBytes, damaged, fuzzRuns, heldCharacters} from '../../support/fuzz.ts';
import {bundleFiles, fixtures, host, memoryReader} from './sources.ts';

const file = (path: string): Buffer => readFileSync(new URL(path, fixtures));
const at = '/etc/onramp/bundle';

/** What is read of a file and said about it: bounded, whatever the file holds. */
function readsSafely<T>(bytes: Buffer, parse: (text: string, findings: FileFindings) => T): boolean {
	const findings = new Findings();
	const ofFile = new FileFindings('f', findings);
	const text = decodeText(bytes, ofFile);
	const value = text === undefined ? undefined : parse(text, ofFile);
	const said = [...findings.problems.map(({message, remedy}) => message + remedy), ...findings.warnings];
	// What is unset is named with its path, and an alias may stand for a repeated value.
	return (
		heldCharacters(value) <= 64 * (bytes.length + 1) && said.length <= 40 && said.every(line => line.length < 1000)
	);
}

const readers = {
	'cluster.env': [parseClusterEnv, file('autoregister/cluster.env'), file('plain/cluster.env')],
	'mesh.yaml': [parseMeshYaml, file('autoregister/mesh.yaml'), file('plain/mesh.yaml')],
} as const;

for (const [name, [parse, ...originals]] of Object.entries(readers)) {
	test(`${name} › of any bytes is read or refused, within bounds`, t => {
		fc.assert(
			fc.property(anyBytes, bytes => readsSafely<unknown>(bytes, parse)),
			fuzzRuns(1000),
		);
		t.pass();
	});

	test(`${name} › that is damaged is read or refused, within bounds`, t => {
		fc.assert(
			fc.property(damaged(...originals), bytes => readsSafely<unknown>(bytes, parse)),
			fuzzRuns(1000),
		);
		t.pass();
	});
}

for (const name of ['cluster.env', 'mesh.yaml', 'hosts'] as const) {
	test(`bundle › with a damaged ${name} is loaded, or refused with config.invalid`, t => {
		const files = bundleFiles('autoregister');
		fc.assert(
			fc.property(damaged(file(`autoregister/${name}`)), fc.boolean(), (bytes, isStrict) => {
				try {
					const reader = memoryReader({...files, [`${at}/${name}`]: bytes});
					loadConfig({argv: {}, env: {}, host, files: reader, isStrict});
				} catch (error) {
					if (!(error instanceof AgentError) || error.code !== 'config.invalid') throw error;
				}
			}),
			fuzzRuns(500),
		);
		t.pass();
	});
}

test('token › of any bytes is looked at without a crash, and never quoted', t => {
	const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
	const token = Buffer.from(`${part({alg: 'ES256'})}.${part({sub: 'PLANTED'})}.${'UExBTlRFRA'.repeat(8)}`);
	fc.assert(
		fc.property(fc.oneof(anyBytes, damaged(token)), bytes => {
			const fault = findTokenFault(bytes.toString('latin1')) ?? '';
			return !/PLANTED|UExBTlRFRA/.test(fault) && fault.length < 300;
		}),
		fuzzRuns(2000),
	);
	t.pass();
});
