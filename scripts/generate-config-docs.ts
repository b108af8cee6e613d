// Writes docs/configuration.md from the table of settings: node scripts/generate-config-docs.ts
import {writeFileSync} from 'node:fs';
import {renderConfigDocs} from '../src/config/docs.ts';

writeFileSync(new URL('../docs/configuration.md', import.meta.url), renderConfigDocs());
