import {readFileSync} from 'node:fs';
import test from 'ava';
import {renderConfigDocs} from '../../../src/config/docs.ts';

test('docs › docs/configuration.md is what scripts/generate-config-docs.ts writes', t => {
	t.is(readFileSync(new URL('../../../docs/configuration.md', import.meta.url), 'utf8'), renderConfigDocs());
});
